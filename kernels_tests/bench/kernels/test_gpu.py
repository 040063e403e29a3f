"""The kernel bench on a GPU with a patched FlashInfer: one small shape, every kernel, through the command."""

import json
import subprocess
import sys

import pytest

from bench.kernels import grid, peers
from flashinfer_patches import engine, package

pytestmark = pytest.mark.gpu
# XQA, and FA3 with an FP8 cache, compute in the cache's format.
BOUNDS = {("xqa-sinks", "e4m3"): 0.08, ("xqa-sinks", "bf16"): 8e-3, ("vllm-fa3", "e4m3"): 0.08}


def test_every_kernel_measures_a_shape(tmp_path):
    if package.installed() is None or engine.status().state != "applied":
        pytest.skip("needs a patched FlashInfer; fp8-sinks patch apply")
    arguments = ["bench", "kernels", "--shape", "2x1024", "--run-dir", str(tmp_path), "--json"]
    process = subprocess.run([sys.executable, "-m", "fp8_sinks", *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    skipped = {(entry["kernel"], entry["kv_format"]) for entry in result["left_out"]}
    assert {kernel for kernel, _ in skipped} <= {"vllm-fa3", "vllm-triton"}
    assert [row["error"] for row in result["rows"]] == [None] * (len(peers.KERNELS) - len(skipped))
    for row in result["rows"]:
        assert row["rel_l2"] < BOUNDS.get((row["kernel"], row["kv_format"]), 4e-3), row
        assert row["kv_bytes"] / row["time_us"] * 1e6 < 1.02 * result["read_ceiling_bytes_per_s"], row
    compiled = [build for build in result["builds"] if build["kernel"] in ("fa2-sinks", "xqa-sinks")]
    assert compiled and all(build["seconds"] > 1 for build in compiled)
    assert list((tmp_path / "cache" / "lowp" / "sink_decode").glob("*.cubin"))
    assert (tmp_path / "report.md").exists() and list((tmp_path / "plots").glob("*.png"))


FORMATS = ["bf16", "e4m3", "int8", "int8-static"]  # of our kernel, in the order of its rows


@pytest.mark.parametrize(
    ("shape", "formats"),
    [
        *((shape, FORMATS[:2]) for shape in ("8x8192w127", "1x8192d128", "1x8192+3x512", "1x2048t131072")),
        *((shape, FORMATS[:2]) for shape in ("8x8192q2", "8x8192q4", "8x8192fp16", "8x8192NHD")),
        *((shape, FORMATS) for shape in ("8x8192", "8x8192interleaved", "1x8192interleaved")),
    ],
)
def test_our_kernel_at_other_shapes(tmp_path, shape, formats):
    arguments = ["bench", "kernels", "--kernel", "sink-decode", "--shape", shape, "--run-dir", str(tmp_path), "--json"]
    process = subprocess.run([sys.executable, "-m", "fp8_sinks", *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)["rows"]
    assert [row["kv_format"] for row in rows] == formats
    assert all(row["error"] is None and row["rel_l2"] < 4e-3 for row in rows), rows


@pytest.mark.parametrize(("name", "formats"), [("server", FORMATS[:3]), ("random", FORMATS)])
def test_our_kernel_at_a_small_shape_of_each_other_grid(tmp_path, name, formats):
    """The smallest shapes with and without a window; their caches are as small."""
    shapes = [point.shape for point in grid.points([name]) if point.shape.batch > 1]
    full, windowed = ([shape for shape in shapes if (shape.window_left < 0) == flag] for flag in (True, False))
    shapes = [min(candidates, key=lambda shape: shape.tokens) for candidates in (full, windowed)]
    arguments = ["bench", "kernels", "--grid", name, "--kernel", "sink-decode", "--run-dir", str(tmp_path), "--json"]
    arguments += [option for shape in shapes for option in ("--shape", str(shape))]
    process = subprocess.run([sys.executable, "-m", "fp8_sinks", *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)["rows"]
    assert [row["kv_format"] for row in rows] == formats * 2
    for row in rows:
        assert "error" not in row and row["rel_l2"] < 4e-3 and row["grid"] == name, row
        assert 1 < row["time_us"] < 100 and 1 < row["between_us"] < 100, row


def test_every_peer_of_a_served_shape(tmp_path):
    """Peers read the interleaved cache through its strides: their errors show it."""
    if package.installed() is None or engine.status().state != "applied":
        pytest.skip("needs a patched FlashInfer; fp8-sinks patch apply")
    shape = next(point.shape for point in grid.points(["server"]) if point.peers and point.shape.context == 512)
    arguments = ["bench", "kernels", "--grid", "server", "--shape", str(shape), "--run-dir", str(tmp_path), "--json"]
    process = subprocess.run([sys.executable, "-m", "fp8_sinks", *arguments], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)["rows"]
    assert {row["kernel"] for row in rows} >= {"sink-decode", "fa2-sinks", "xqa-sinks"}
    for row in rows:
        assert "error" not in row and row["rel_l2"] < BOUNDS.get((row["kernel"], row["kv_format"]), 4e-3), row


def test_the_ceiling_is_of_a_gpus_order():
    from bench.kernels.ceiling import read_ceiling

    assert 1e11 < read_ceiling() < 2e13
