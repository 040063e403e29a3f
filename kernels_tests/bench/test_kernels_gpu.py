"""The kernel bench on a GPU with a patched FlashInfer: one small shape, every kernel, through the command."""

import json
import subprocess
import sys

import pytest

from flashinfer_patches import engine, package

pytestmark = pytest.mark.gpu


def test_every_kernel_at_one_shape(tmp_path):
    if package.installed() is None or engine.status().state != "applied":
        pytest.skip("needs a patched FlashInfer; fp8-sinks patch apply")
    words = ["bench", "kernels", "--shape", "2x1024", "--run-dir", str(tmp_path), "--json"]
    done = subprocess.run([sys.executable, "-m", "fp8_sinks", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["error"] for row in result["rows"]] == [None] * 5
    bounds = {("xqa-sinks", "e4m3"): 0.08, ("xqa-sinks", "bf16"): 8e-3}  # XQA computes in the cache's format
    for row in result["rows"]:
        assert row["rel_l2"] < bounds.get((row["kernel"], row["kv_format"]), 4e-3), row
        assert row["kv_bytes"] / row["time_us"] * 1e6 < 1.02 * result["read_ceiling_bytes_per_s"], row
    assert all(build["seconds"] > 1 for build in result["builds"])
    fa2 = [one for one in result["tolerance"] if one["kernel"] == "fa2-sinks"]
    assert all(one["missed_stored"] == 0 for one in fa2)
    assert all((one["missed_bf16"] > 0.1) == (one["kv_format"] == "e4m3") for one in fa2)
    assert (tmp_path / "report.md").exists() and list((tmp_path / "plots").glob("*-kernels.png"))


def test_the_ceiling_is_of_a_gpus_order():
    from bench.kernels.ceiling import read_ceiling

    assert 1e11 < read_ceiling() < 2e13
