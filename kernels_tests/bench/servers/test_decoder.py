"""Runs on fake servers of a simulated GPU: the decoder in rows, digests and messages."""

import json
import re

import pytest
import torch

from bench.suite import load
from kernels_tests.bench.conftest import rows
from kernels_tests.vllm_launch import scale_files
from kernels_tests.vllm_launch.machines import H200, RTX
from vllm_launch import certificate, model, plan, profile


@pytest.fixture
def bench_on(bench, monkeypatch):
    """A function that runs a bench of the embedded model on a simulated GPU."""

    def invoke(gpu, *words, certified=None, **options):
        monkeypatch.setattr(plan, "detect", lambda _device: gpu)
        monkeypatch.setattr(plan.software, "vllm_build", lambda: ("gpu", "0.33.0"))
        monkeypatch.setattr(certificate, "decoder", lambda: certified)
        embedded = () if "--resume" in words else ("--model", str(model.EMBEDDED))
        return bench(*words, *embedded, **options)

    return invoke


@pytest.mark.parametrize(
    ("gpu", "certified", "decoder"), [(H200, None, "lowp"), (RTX, None, "stock"), (RTX, "lowp", "lowp")]
)
def test_rows_have_the_decoder(bench_on, servers, tmp_path, gpu, certified, decoder):
    output = bench_on(gpu, "serving", "baseline", "fp8", "fp8-stock", certified=certified).stderr
    by_name = rows(tmp_path / "run")
    assert {name: row.decoder for name, row in by_name.items()} == {
        "baseline": "stock",
        "fp8": decoder,
        "fp8-stock": "stock",
    }
    environments = {name: row.requested.environment for name, row in by_name.items()}
    assert environments["fp8"].get("FP8_SINKS_DECODER", "stock") == decoder
    assert "FP8_SINKS_DECODER" not in environments["baseline"] | environments["fp8-stock"]
    shown = re.findall(r"^(\S+): decoder (\w+): .*certif", output, re.MULTILINE)
    assert shown == ([] if gpu is H200 else [("fp8", decoder)])
    records = {planned.environment["FP8_SINKS_RECORD"] for planned in servers.plans if planned.decoder != "stock"}
    assert len(records) == (3 if decoder == "lowp" else 0), "one for each start"


def test_a_cpu_has_no_message_of_its_decoder(bench, tmp_path):
    assert not re.search(r": decoder ", bench("serving", "baseline", "fp8").stderr)
    assert {row.decoder for row in rows(tmp_path / "run").values()} == {"stock"}


def test_a_run_resumes_with_the_same_decoder_alone(bench_on, tmp_path):
    bench_on(RTX, "serving", "fp8", certified="lowp")
    bench_on(RTX, "serving", "--resume", str(tmp_path / "run"), certified="lowp")
    refused = bench_on(RTX, "serving", "--resume", str(tmp_path / "run"), exit_code=2)
    assert "FP8_SINKS_DECODER" in refused.stderr


def write_scales(folder, scale):
    """Write a scale file for the embedded model, the same scale for all layers."""
    embedded = model.find(str(model.EMBEDDED))
    k, v = ([torch.full((embedded.kv_heads,), scale) for _ in range(embedded.layers)] for _ in "kv")
    config = (model.EMBEDDED / "config.json").read_bytes()
    scale_files.write(folder / "scales.safetensors", config, k, v)


def test_a_run_resumes_with_the_same_scales_alone(bench_on, small, tmp_path):
    write_scales(tmp_path, 1.0)
    path = small("vllm: {kv-cache-dtype: fp8}\ndecoder: lowp\nkv_scales: scales.safetensors")
    bench_on(H200, "serving", path)
    digest = json.loads((tmp_path / "run" / "small" / "digest.json").read_text())
    assert len(digest["KV scales"]) == 64
    bench_on(H200, "serving", "--resume", str(tmp_path / "run"))
    write_scales(tmp_path, 2.0)
    assert "KV scales" in bench_on(H200, "serving", "--resume", str(tmp_path / "run"), exit_code=2).stderr


def test_fp8_stock_is_judged_as_fp8():
    suite = load(None, "tiny_gpt_oss")
    assert suite.thresholds_of(profile.load("fp8-stock")) == suite.thresholds_of(profile.load("fp8"))
