"""A kernel's time against the floor, the law and other kernels, on made-up results."""

import pytest

from bench.kernels import comparison
from bench.kernels.peers import OURS
from kernels_tests.bench.kernels.samples import a_failed_row, a_kernel_row, a_kernels_result
from lowp.paged.shapes import Shape, even

SMALL, LARGE = even(1, 2048), even(32, 8192)


def row(shape, us, kv_format="e4m3", kernel=OURS, **changes):
    return a_kernel_row(shape, kernel, kv_format, us=us, **({"rel_l2": 1.7e-3} | changes))


def test_the_law_is_that_of_the_design():
    # 1024 bytes a token: 32 x 8192 tokens at 0.93 x 4.4 TB/s take 65.6 us.
    call = row(LARGE, 69.2)
    assert comparison.floor_us(call, 4.4e12) == pytest.approx(61.01, abs=0.01)
    assert comparison.law_us(call, 4.4e12) == pytest.approx(69.10, abs=0.01)


def test_peers_are_other_kernels_at_the_same_shape_the_fastest_first():
    slow, fast = row(SMALL, 9.0, "bf16", "fa2-sinks"), row(SMALL, 7.0, kernel="xqa-sinks", rel_l2=3.6e-2)
    elsewhere = [row(even(1, 2048, window_left=127), 1.0, kernel="xqa-sinks"), a_failed_row(SMALL), row(SMALL, 3.0)]
    result = a_kernels_result(slow, fast, *elsewhere, row(SMALL, 4.0, "bf16"))
    assert comparison.peers_by_shape(result.rows)[SMALL] == [fast, slow]
    assert comparison.ours(result.rows) == [elsewhere[-1]]


def test_plain_rows_are_preferred():
    ragged, even_row = row(Shape((8192, 512)), 100.0), row(SMALL, 3.0)
    assert comparison.plain([ragged, even_row]) == [even_row] and comparison.plain([ragged]) == [ragged]
