"""The kernel bench without a GPU: bytes, inputs, the exact answer, rows and results."""

import json
import math
from typing import get_args

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.kernels import exact, grid, peers
from bench.kernels.grid import GEOMETRY, Point
from bench.kernels.result import KernelRow
from bench.kinds import read
from bench.record.files import write
from kernels_tests.bench.kernels.samples import a_failed_row, a_kernel_row, a_kernels_result
from kernels_tests.lowp import dense
from lowp.paged import inputs
from lowp.paged.shapes import Layout, Shape, drawn, even


def test_bytes_of_the_grid():
    # 2 (keys and values) x 8 KV heads x 64 values a token.
    assert grid.kv_bytes(even(1, 1), "e4m3") == 1024 and grid.kv_bytes(even(1, 1), "bf16") == 2048
    assert grid.kv_bytes(even(64, 8192), "e4m3") == 536_870_912
    assert len(grid.PLAIN) == 14 and len(grid.STANDARD) == len(set(map(str, grid.STANDARD))) == 42
    # A window of 128 reads that many tokens of each request; a wide table reads nothing more.
    assert grid.kv_bytes(even(8, 8192, window_left=127), "e4m3") == 8 * 128 * 1024
    assert grid.kv_bytes(Shape((64, 512), window_left=127), "e4m3") == (64 + 128) * 1024
    assert grid.kv_bytes(even(1, 8192, head_dim=128), "e4m3") == 2 * grid.kv_bytes(even(1, 8192), "e4m3")
    assert grid.kv_bytes(even(1, 2048, table_tokens=131072), "e4m3") == 2048 * 1024
    assert grid.kv_bytes(grid.RAGGED[0], "e4m3") == (131072 + 31 * 512) * 1024


def test_the_drawn_lengths_are_the_same_every_time():
    drawn = grid.RAGGED[1]
    assert str(drawn) == "32x1175-16368" and drawn.lengths[:3] == (14347, 6823, 12930)


@pytest.mark.parametrize("shape", grid.STANDARD, ids=str)
def test_layers_rotate_through_enough_memory(shape):
    layers = grid.layers(shape)
    assert layers >= 2
    assert layers * grid.kv_bytes(shape, "e4m3") >= 400_000_000
    assert layers == 2 or (layers - 1) * grid.kv_bytes(shape, "e4m3") < 400_000_000


def test_shapes_are_parsed_or_refused():
    assert grid.parse("8x8192") == Point("standard", even(8, 8192))
    for text in ("8", "8x", "x8", "0x8192", "8x08192", "1x128", "1x99999999", "8 x 8192"):
        with pytest.raises(ValueError, match=r"BATCHxCONTEXT such as 8x8192, 1,024 to 8,388,608 tokens"):
            grid.parse(text)
    assert all(grid.parse(str(shape)).shape == shape for shape in grid.STANDARD)


@pytest.mark.parametrize(
    ("shape", "name", "words"),
    [
        (even(8, 8192), "8x8192", "8 x 8,192"),
        (Shape((8192, 512, 512)), "1x8192+2x512", "1 x 8,192 + 2 x 512"),
        (Shape((1, 2, 1, 2)), "4x1-2", "4 x 1 to 2"),
        (even(8, 8192, window_left=127), "8x8192w127", "8 x 8,192, window of 128"),
        (even(1, 8192, head_dim=128), "1x8192d128", "1 x 8,192, head_dim 128"),
        (even(1, 2048, table_tokens=131072), "1x2048t131072", "1 x 2,048, table for 131,072"),
        (even(8, 8192, layout="NHD"), "8x8192NHD", "8 x 8,192, NHD"),
        (even(8, 8192, query_tokens=2), "8x8192q2", "8 x 8,192, 2 query tokens"),
        (even(8, 8192, query_format="fp16"), "8x8192fp16", "8 x 8,192, fp16 query"),
        (drawn(8, 8192, "near", window_left=127), "8x8192nearw127", "8 x 8,192, near, window of 128"),
    ],
)
def test_shapes_have_a_name_and_words(shape, name, words):
    assert str(shape) == name and shape.words == words
    assert shape.plain == (name == "8x8192") and shape.ragged == any(text in name for text in ("+", "-", "near"))


@pytest.fixture(scope="module")
def small() -> inputs.Inputs:
    return inputs.build(even(6, 100), layers=3, device="cpu")


def test_inputs_hold_the_same_values_in_every_format(small):
    assert len(small.q) == len(small.out) == 3
    for (k16, v16), (k8, v8) in zip(small.caches["bf16"], small.caches["e4m3"], strict=True):
        assert k16.shape == (6 * 7, 8, 16, 64) and k16.dtype == torch.bfloat16 and k8.dtype == torch.float8_e4m3fn
        assert torch.equal(k8.view(torch.uint8), k16.to(torch.float8_e4m3fn).view(torch.uint8))
        assert torch.equal(v8.view(torch.uint8), v16.to(torch.float8_e4m3fn).view(torch.uint8))
    pages = small.block_table.flatten()
    assert sorted(pages.tolist()) == list(range(42)) and pages.tolist() != list(range(42))
    assert not torch.equal(small.q[0], small.q[1])
    rebuilt = inputs.build(even(6, 100), layers=3, device="cpu")
    assert torch.equal(rebuilt.q[2], small.q[2]) and torch.equal(rebuilt.block_table, small.block_table)


def test_sinks_are_near_the_log_sum_exp(small):
    """Dropping them must show."""
    out, bare = (exact.attention(small, "bf16", 1, 3, sinks=sinks) for sinks in (True, False))
    assert 0.2 < 1 - out.norm() / bare.norm() < 0.8


@pytest.mark.parametrize(
    "shape",
    [
        Shape((100, 17, 16, 1, 230)),
        Shape((300, 100), window_left=127),
        even(2, 40, head_dim=128),
        even(2, 40, table_tokens=160),
        even(2, 40, layout="NHD"),
        even(2, 40, layout="interleaved"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
@pytest.mark.parametrize("sinks", [True, False])
def test_the_exact_answer_is_attention(shape, kv_format, sinks):
    """Judged by a dense attention written apart; only pages that are read are in the caches."""
    data = inputs.build(shape, layers=2, device="cpu")
    k, v = data.caches[kv_format][1]
    used = {int(data.block_table[row, page]) for row in range(shape.batch) for page in pages(shape, row)}
    assert used == set(range(len(k))), "a page that is not read would make the caches larger than what is counted"
    logits = data.sinks if sinks else torch.full_like(data.sinks, -math.inf)
    options = {"sm_scale": data.sm_scale, "window_left": shape.window_left, "layout": "HND"}
    judged, _ = dense.attention(data.q[1], k, v, data.block_table, data.seq_lens, logits, **options)
    for row in range(shape.batch):
        output = exact.attention(data, kv_format, 1, row, sinks=sinks)
        torch.testing.assert_close(output, judged[row], rtol=1e-9, atol=1e-12)
    assert data.block_table.shape[1] == -(-max(shape.context, shape.table_tokens) // 16)
    assert torch.equal(data.sinks, data.sinks.bfloat16().float())


def pages(shape, row) -> range:
    first = max(0, shape.lengths[row] - 128) if shape.window_left == 127 else 0
    return range(first // 16, -(-shape.lengths[row] // 16))


def test_the_longest_sequence_is_checked():
    data = inputs.build(Shape((16, 16, 16, 32, 16, 16, 16)), layers=1, device="cpu")
    assert len(exact.expected(data, "bf16", sinks=True)) == exact.ROWS + 1
    data = inputs.build(Shape((32, 16, 16, 16, 16, 16, 16)), layers=1, device="cpu")
    assert len(exact.expected(data, "bf16", sinks=True)) == exact.ROWS


@pytest.mark.parametrize("kv_format", ["bf16", "e4m3"])
def test_caches_lie_in_memory_as_the_layout_says(kv_format):
    """[pages, kv heads, page, head_dim] each; elements from one head, and one token, to the next."""
    apart = {"HND": (16 * 64, 64), "NHD": (64, 8 * 64), "interleaved": (16 * 128, 128)}
    for layout, strides in apart.items():
        k, v = inputs.build(even(2, 40, layout=layout), layers=1, device="cpu").caches[kv_format][0]
        assert k.shape == v.shape == (6, 8, 16, 64)
        assert k.stride()[1:] == v.stride()[1:] == (*strides, 1)
        assert (v.data_ptr() - k.data_ptr() == 64 * k.element_size()) == (layout == "interleaved")


@pytest.mark.parametrize(
    ("kv_format", "sizes"),
    [
        *((kv_format, {"layout": layout}) for kv_format in ("bf16", "e4m3") for layout in get_args(Layout)),
        *((kv_format, {"query_tokens": 2}) for kv_format in ("bf16", "e4m3")),
        *((kv_format, {"query_format": "fp16"}) for kv_format in ("bf16", "e4m3")),
        *(("int8", {"layout": layout}) for layout in get_args(Layout)),
        *(("int8-static", {"layout": layout}) for layout in get_args(Layout)),
    ],
)
def test_our_kernel_is_called_with_the_inputs(kv_format, sizes):
    """On CPU tensors its float64 reference computes: layers, window, table, scales and output are the right ones."""
    data = inputs.build(Shape((300, 100), window_left=127, table_tokens=512, **sizes), 3, [kv_format], "cpu")
    inputs.poison(data)
    kernel = next(kernel for kernel in peers.KERNELS if str(kernel) == f"{peers.OURS} {kv_format}")
    for call in kernel.calls(data, kernel.settings[0]):
        call()
    least = 1e-4 if "query_format" in sizes else 1e-3  # BF16's rounding, or FP16's, of the output
    assert least < exact.rel_l2(exact.outputs(data), exact.expected(data, kv_format, sinks=True)) < 2.5e-3


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize(
    ("kv_format", "shapes"), [("int8", [(26, 8, 16), (26, 8, 16)]), ("int8-static", [(8, 64), (8,)])]
)
def test_int8_holds_the_values_with_their_scales(layout, kv_format, shapes):
    data = inputs.build(Shape((300, 100), layout=layout), 2, ["bf16", kv_format], "cpu")
    axes = {3: lambda x: x[..., None], 2: lambda x: x[None, :, None], 1: lambda x: x[None, :, None, None]}
    caches = data.caches["bf16"], data.caches[kv_format], data.scales[kv_format]
    for exact_pair, stored, scales in zip(*caches, strict=True):
        assert [tuple(scale.shape) for scale in scales] == shapes
        for values, integers, scale in zip(exact_pair, stored, scales, strict=True):
            step = axes[scale.dim()](scale)
            assert integers.dtype == torch.int8 and integers.abs().amax() == 127
            assert ((integers.float() * step - values.float()).abs() <= step * 0.51).all()


def test_bytes_of_int8():
    # 2 x 8 heads x (64 values, and a scale of 4 bytes of the token's own) a token.
    assert grid.kv_bytes(even(1, 1), "int8") == 16 * 68
    assert grid.kv_bytes(even(1, 1), "int8-static") == grid.kv_bytes(even(1, 1), "e4m3")


def test_the_first_and_the_last_are_checked():
    assert exact.ends(128, 4) == [0, 1, 126, 127]
    assert exact.ends(3, 4) == [0, 1, 2]
    assert exact.ends(191, 2) == [0, 190]
    assert exact.ends(1, 2) == [0]


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


DRAWN = [drawn(9, 8192, spread, table_tokens=131072, layout="interleaved") for spread in ("near", "uniform")]


@pytest.mark.parametrize("shape", [even(2, 512), *grid.STANDARD[13:], *DRAWN], ids=str)
def test_a_row_says_its_shape(shape):
    row = a_kernel_row(shape)
    assert KernelRow.model_validate_json(row.model_dump_json()).shape == shape
    assert row.lengths == (shape.spread or (list(shape.lengths) if shape.ragged else "equal"))
    assert (row.batch, row.context) == (shape.batch, shape.context)


def test_a_result_is_saved_loaded_and_kept(tmp_path):
    result = a_kernels_result(a_kernel_row(even(1, 2048)), a_failed_row(even(1, 2048)))
    write(result, tmp_path / "result.json")
    assert read(tmp_path / "result.json") == result
    invocation = CliRunner().invoke(bench, ["keep", str(tmp_path), "--results", str(tmp_path / "results")])
    assert invocation.exit_code == 0 and (tmp_path / "results" / f"kernels-{result.id}.json").exists()


def test_keys_that_others_read():
    content = json.loads(a_kernels_result().model_dump_json())
    assert {"kind", "read_ceiling_bytes_per_s", "rows"} <= set(content) and content["kind"] == "kernels"
    assert {"kernel", "kv_format", "batch", "context", "kv_bytes", "time_us", "rel_l2", "error"} <= set(
        content["rows"][0]
    )


def test_geometry_is_gpt_oss():
    assert (GEOMETRY.query_heads, GEOMETRY.kv_heads, GEOMETRY.head_dim) == (64, 8, 64)
