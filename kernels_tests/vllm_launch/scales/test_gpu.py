"""The same counts and about the same scales on a GPU."""

import pytest
import torch
from click.testing import CliRunner

from fp8_sinks.cli import main
from kernels_tests.vllm_launch.scales.conftest import MODEL
from kernels_tests.vllm_launch.scales.test_magnitudes import COUNTS, STATES
from vllm_launch.scales import collect, file, magnitudes

pytestmark = pytest.mark.gpu


def test_a_gpu_counts_the_same():
    counts = magnitudes.count(STATES.cuda())
    assert torch.equal(counts.cpu(), COUNTS)
    for percent in (50, 99.9, 100):
        assert torch.equal(magnitudes.percentile(counts, percent).cpu(), magnitudes.percentile(COUNTS, percent))
    assert torch.equal(magnitudes.saturated(counts, 0.5).cpu(), magnitudes.saturated(COUNTS, 0.5))


def test_scales_of_the_embedded_model_are_those_of_a_cpu(tmp_path, loaded):
    text, out = tmp_path / "text.txt", tmp_path / "scales.safetensors"
    text.write_text("The capital of France is Paris. " * 60)
    result = CliRunner().invoke(
        main, ["scales", "calibrate", MODEL.path, "--text", str(text), "--out", str(out), "--headroom", "1"]
    )
    assert result.exit_code == 0, result.stderr
    counts = collect.count(loaded, [collect.tokenize(MODEL, text.read_text())], lambda _: None)
    scales = file.load(out, MODEL.layers, MODEL.kv_heads)
    for layer, pair in enumerate(zip(scales.k, scales.v, strict=True)):
        expected = [magnitudes.e4m3_scales(of_kind, 100, 1.0, "head") for of_kind in counts[layer]]
        torch.testing.assert_close(torch.stack(pair), torch.stack(expected), rtol=0.05, atol=0)
