"""Ratios to stock BF16: within a piece, with the noise of the starts."""

import math

import pytest

from bench.engine import ratios
from bench.record import noise
from kernels_tests.bench.engine.samples import an_engine_row, rows_of


def test_a_ratio_is_of_medians_over_the_starts():
    steps = ratios.to_base(rows_of(), "plugin-fp8")
    assert steps["1x2048"].value == pytest.approx(4.205 / 4.45)
    assert 0 < steps["1x2048"].noise < 0.02
    assert ratios.verdict("1x2048", steps["1x2048"]) == noise.FASTER


def test_a_full_cache_is_judged_by_tokens_per_second():
    compared = ratios.compared(rows_of(), "plugin-fp8")
    assert compared["full"].value == pytest.approx(2 * 12.05 / 14.05, rel=1e-3)
    assert ratios.verdict("full", compared["full"]) == noise.FASTER
    assert compared["8x32768"] == ratios.to_base(rows_of(), "plugin-fp8")["8x32768"]


def test_ratios_across_pieces_are_refused():
    rows = [*rows_of("stock-bf16", piece=1), *rows_of("plugin-fp8", piece=2)]
    for calculate in (ratios.to_base, ratios.compared):
        with pytest.raises(ValueError, match="across pieces"):
            calculate(rows, "plugin-fp8")
    alone = ratios.of_piece(rows, "plugin-fp8")
    assert {row.piece for row in alone} == {2} and ratios.compared(alone, "plugin-fp8") == {}


def test_a_variant_in_several_pieces_counts_in_the_last_with_its_own_base():
    slower = [row.model_copy(update={"step_ms": 2 * row.step_ms}) for row in rows_of("stock-bf16", piece=2)]
    rows = [*rows_of(piece=1), *slower, *rows_of("plugin-fp8", piece=2)]
    last = ratios.to_base(ratios.of_piece(rows, "plugin-fp8"), "plugin-fp8")
    first = ratios.to_base(ratios.of_piece(rows, "stock-fp8"), "stock-fp8")
    assert last["1x2048"].value == pytest.approx(4.205 / 8.9) and first["1x2048"].value > 1


def test_a_single_start_has_no_noise_and_hides_none():
    single = [an_engine_row(name, "1x32768", step) for name, step in (("stock-bf16", 4.75), ("plugin-fp8", 4.35))]
    steps = ratios.to_base([*rows_of(), *single], "plugin-fp8")
    assert math.isinf(steps["1x32768"].noise)
    assert ratios.verdict("1x32768", steps["1x32768"]) == noise.NOT_KNOWN
    assert steps["1x2048"] == ratios.to_base(rows_of(), "plugin-fp8")["1x2048"]


def test_a_difference_within_the_starts_spread_is_none():
    rows = [
        *rows_of("stock-bf16"),
        *(an_engine_row("plugin-bf16", "1x2048", step, start) for start, step in ((1, 4.3), (2, 4.6))),
    ]
    ratio = ratios.to_base(rows, "plugin-bf16")["1x2048"]
    assert ratios.verdict("1x2048", ratio) == noise.INSIDE
    wide = [an_engine_row("plugin-bf16", "1x2048", step, start) for start, step in ((1, 3.0), (2, 6.0))]
    ratio = ratios.to_base([*rows_of("stock-bf16"), *wide], "plugin-bf16")["1x2048"]
    assert ratios.verdict("1x2048", ratio) == noise.TOO_NOISY


def test_failed_rows_are_left_out():
    rows = [*rows_of(), an_engine_row("plugin-fp8", "32x8192", None)]
    assert "32x8192" not in ratios.to_base(rows, "plugin-fp8")


def test_growth_from_the_shortest_to_the_longest_context():
    assert ratios.slope(rows_of(), "plugin-fp8") == pytest.approx(0.52 / 1.11, rel=1e-6)
    assert ratios.slope(rows_of(), "plugin-bf16") is None


def test_the_worst_cell_is_that_of_the_highest_step_ratio():
    assert ratios.worst(rows_of())[:2] == ("stock-fp8", "1x2048")
    assert ratios.worst(rows_of("stock-bf16", "plugin-fp8"))[:2] == ("plugin-fp8", "1x2048")  # not full
    assert ratios.worst(rows_of("stock-bf16")) is None
