"""The doctor's figures of decode kernels against the kernel bench in results/ that they are taken from."""

import pytest

from bench.kernels.result import KernelsResult
from bench.kinds import read
from vllm_launch.doctor.backends import CHOICES
from vllm_launch.provenance import REPO

FA3, TRITON, XQA = "vllm-fa3", "vllm-triton", "xqa-sinks"


@pytest.fixture(scope="module")
def result() -> KernelsResult:
    results = map(read, (REPO / "results").glob("kernels-*.json"))
    of_h200 = [result for result in results if result.provenance.machine.name == "NVIDIA H200"]
    standard = [result for result in of_h200 if any(row.grid == "standard" for row in result.rows)]
    return max(standard, key=lambda result: result.provenance.created)


def rows_by_shape(result, kernel, kv_format) -> dict:
    """The rows of a kernel over the grid."""
    rows = (row for row in result.rows if (row.kernel, row.kv_format) == (kernel, kv_format))
    return {row.shape: row for row in rows if row.shape.plain}


def times(result, kernel, baseline) -> str:
    """The time of `kernel` over that of `baseline`: the least and the greatest ratio over the grid."""
    baseline_rows = rows_by_shape(result, *baseline)
    ratios = [row.time_us / baseline_rows[shape].time_us for shape, row in rows_by_shape(result, *kernel).items()]
    return f"{min(ratios):.2f}-{max(ratios):.2f}"


def error(result, kernel, kv_format) -> str:
    """The least and the greatest relative error, one power of ten."""
    errors = sorted(row.rel_l2 for row in rows_by_shape(result, kernel, kv_format).values())
    (least, _), (most, power) = (f"{value:.1e}".split("e-0") for value in (errors[0], errors[-1]))
    return f"{least}-{most}e-{power}"


def test_flash_attention_3(result):
    choice = CHOICES["sm90", "0.26"]
    assert f"takes {times(result, (FA3, 'e4m3'), (FA3, 'bf16'))} times BF16's time" in choice.fp8
    assert f"relative error {error(result, FA3, 'e4m3')}" in choice.fp8
    worst = max(row.rel_l2 for row in rows_by_shape(result, FA3, "bf16").values())
    assert f"relative error {worst:.1e}".replace("e-0", "e-") in choice.bf16


def test_triton(result):
    choice = CHOICES["sm12x", "0.26"]
    assert f": {times(result, (TRITON, 'bf16'), (FA3, 'bf16'))} times the time of" in choice.bf16
    assert f"slower, {times(result, (TRITON, 'e4m3'), (TRITON, 'bf16'))} times" in choice.fp8


def test_xqa(result):
    choice = CHOICES["sm12x", "0.33"]
    assert f": {times(result, (XQA, 'bf16'), (FA3, 'bf16'))} times the time of FlashAttention 3" in choice.bf16
    assert f"relative error {error(result, XQA, 'bf16')}" in choice.bf16
    assert f"FP8: {times(result, (XQA, 'e4m3'), (XQA, 'bf16'))} times" in choice.fp8
    assert f"relative error {error(result, XQA, 'e4m3')}" in choice.fp8
