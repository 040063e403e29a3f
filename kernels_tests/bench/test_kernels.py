"""The kernel bench without a GPU: bytes, inputs, the exact answer, timing, statistics, refusals, one whole run."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError

from bench.cli import bench
from bench.kernels import exact, grid, inputs, timing
from bench.kernels.grid import GEOMETRY, Shape
from bench.kernels.result import KernelRow
from bench.result import read, write
from kernels_tests.bench.kernel_samples import a_failed_row, a_kernel_row, a_kernels_result
from kernels_tests.flashinfer_patches import cases


def test_bytes_of_the_grid():
    # 2 (keys and values) x 8 KV heads x 64 values a token.
    assert grid.kv_bytes(Shape(1, 1), "e4m3") == 1024 and grid.kv_bytes(Shape(1, 1), "bf16") == 2048
    assert grid.kv_bytes(Shape(64, 8192), "e4m3") == 536_870_912
    assert len(grid.GRID) == 9 and len(set(grid.GRID)) == 9


@pytest.mark.parametrize("shape", grid.GRID, ids=str)
def test_layers_rotate_through_enough_memory(shape):
    layers = grid.layers(shape)
    assert layers >= 2
    assert layers * grid.kv_bytes(shape, "e4m3") >= 400_000_000
    assert layers == 2 or (layers - 1) * grid.kv_bytes(shape, "e4m3") < 400_000_000


def test_shapes_are_parsed_or_refused():
    assert grid.parse("8x8192") == Shape(8, 8192)
    for text in ("8", "8x", "x8", "0x8192", "8x08192", "1x128", "1x99999999", "8 x 8192"):
        with pytest.raises(ValueError, match=r"BATCHxCONTEXT such as 8x8192, 1,024 to 8,388,608 tokens"):
            grid.parse(text)


@pytest.fixture(scope="module")
def small() -> inputs.Inputs:
    return inputs.build(Shape(6, 100), layers=3, device="cpu")


def test_inputs_hold_the_same_values_in_every_format(small):
    assert len(small.q) == len(small.out) == 3
    for (k16, v16), (k8, v8) in zip(small.caches["bf16"], small.caches["e4m3"], strict=True):
        assert k16.shape == (6 * 7, 8, 16, 64) and k16.dtype == torch.bfloat16 and k8.dtype == torch.float8_e4m3fn
        assert torch.equal(k8.view(torch.uint8), k16.to(torch.float8_e4m3fn).view(torch.uint8))
        assert torch.equal(v8.view(torch.uint8), v16.to(torch.float8_e4m3fn).view(torch.uint8))
    pages = small.block_table.flatten()
    assert sorted(pages.tolist()) == list(range(42)) and pages.tolist() != list(range(42))
    assert not torch.equal(small.q[0], small.q[1])
    again = inputs.build(Shape(6, 100), layers=3, device="cpu")
    assert torch.equal(again.q[2], small.q[2]) and torch.equal(again.block_table, small.block_table)


@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
@pytest.mark.parametrize("sinks", [True, False])
def test_the_exact_answer_is_that_of_the_patches_tests(small, kv_format, sinks):
    """Two formulas written apart, on the same tokens."""
    k, v = (
        cache[small.block_table.long()].transpose(2, 3).reshape(6, -1, 8, 64)[:, :100].double()
        for cache in small.caches[kv_format][1]
    )
    expected, lse = cases.reference(small.q[1], list(zip(k, v, strict=True)), small.sinks if sinks else None)
    for row in range(6):
        got = exact.attention(small, kv_format, 1, row, sinks=sinks)
        torch.testing.assert_close(got, expected[row], rtol=1e-9, atol=1e-12)
    # The sinks are near the log-sum-exp: dropping them must show.
    share = torch.exp2(small.sinks / math.log(2) - lse) if sinks else torch.full((1,), 0.5)
    assert 0.2 < share.mean() < 0.8


def test_only_the_first_and_last_are_looked_at():
    assert exact.looked_at(128, 4) == [0, 1, 126, 127]
    assert exact.looked_at(3, 4) == [0, 1, 2]
    assert exact.looked_at(191, 2) == [0, 190]
    assert exact.looked_at(1, 2) == [0]


def test_an_output_that_is_right_in_the_first_layer_alone_is_wrong(small):
    expected = exact.expected(small, "bf16", sinks=True)
    inputs.poison(small)
    for row in range(6):
        small.out[0][row] = exact.attention(small, "bf16", 0, row, sinks=True)
    assert math.isnan(exact.rel_l2(exact.outputs(small), expected))
    for row in range(6):
        small.out[2][row] = exact.attention(small, "bf16", 2, row, sinks=True)
    assert 1e-3 < exact.rel_l2(exact.outputs(small), expected) < 2.5e-3  # BF16's rounding of the output
    small.out[2][5] = small.out[2][5].roll(1, 0)
    assert exact.rel_l2(exact.outputs(small), expected) > 0.1


def test_missed_counts_elements_outside_the_tolerance():
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    out = torch.tensor([1.0109, 1.0111, math.nan, 0.0009], dtype=torch.float64)
    assert exact.missed(out, expected, rtol=1e-2, atol=1e-3) == 0.5


def test_e4m3_misses_the_plans_tolerance_by_its_rounding_alone(small):
    """No kernel in it: the exact answer over the stored cache, held against that over BF16."""
    stored, bf16 = (exact.expected(small, name, sinks=True) for name in ("e4m3", "bf16"))
    assert exact.missed(stored, bf16, grid.RTOL, grid.ATOL) > 0.3
    assert 0.02 < exact.rel_l2(stored, bf16) < 0.1


def test_samples_are_microseconds_a_call_without_the_warmups():
    clock = iter([100.0] * timing.WARMUPS + [0.5] * timing.REPLAYS)
    assert timing.samples_us(lambda: next(clock), calls=20) == [25.0] * timing.REPLAYS
    assert next(clock, None) is None


def test_calls_are_repeated_in_whole_rounds():
    calls = [lambda: 1, lambda: 2, lambda: 3]
    assert timing.repeated(calls) == calls * 6
    assert timing.repeated(calls * 7) == calls * 7


def test_the_fastest_setting_is_that_of_the_smallest_median():
    assert timing.fastest({"a": [1.0, 9.0, 9.0], "b": [8.0, 8.0, 20.0]}) == "b"


@pytest.mark.parametrize(
    "changes",
    [
        {"time_us": None},
        {"rel_l2": None},
        {"rel_l2": math.nan},
        {"samples_us": []},
        {"error": "failed"},
        {"error": "failed", "time_us": None, "samples_us": [], "rel_l2": 1.0},
    ],
)
def test_a_row_has_all_figures_or_an_error(changes):
    row = a_kernel_row(Shape(1, 2048)).model_dump()
    KernelRow(**row)
    with pytest.raises(ValidationError):
        KernelRow(**(row | changes))


def test_a_result_is_kept_and_read_back(tmp_path):
    result = a_kernels_result(a_kernel_row(Shape(1, 2048)), a_failed_row(Shape(1, 2048)))
    write(result, tmp_path / "result.json")
    assert read(tmp_path / "result.json") == result
    kept = CliRunner().invoke(bench, ["keep", str(tmp_path), "--results", str(tmp_path / "results")])
    assert kept.exit_code == 0 and (tmp_path / "results" / f"kernels-{result.id}.json").exists()


def test_keys_that_others_read():
    found = json.loads(a_kernels_result().model_dump_json())
    assert {"kind", "read_ceiling_bytes_per_s", "rows"} <= set(found) and found["kind"] == "kernels"
    assert {"kernel", "kv_format", "batch", "context", "kv_bytes", "time_us", "rel_l2", "error"} <= set(
        found["rows"][0]
    )


def test_geometry_is_gpt_oss():
    assert (GEOMETRY.query_heads, GEOMETRY.kv_heads, GEOMETRY.head_dim) == (64, 8, 64)
