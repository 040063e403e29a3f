"""The same counts and about the same scales on a GPU."""

import pytest
import torch
from click.testing import CliRunner

from fp8_sinks.cli import main
from kernels_tests.vllm_launch.scales.conftest import MODEL
from kernels_tests.vllm_launch.scales.test_magnitudes import COUNTS, STATES
from vllm_launch.scales import HEADROOM, collect, file, magnitudes

pytestmark = pytest.mark.gpu


def test_a_gpu_counts_the_same():
    counts = magnitudes.count(STATES.cuda())
    assert torch.equal(counts.cpu(), COUNTS)
    for percent in (50, 99.9, 100):
        assert torch.equal(magnitudes.percentile(counts, percent).cpu(), magnitudes.percentile(COUNTS, percent))
    expected = magnitudes.saturated(COUNTS, 0.5, "e4m3")
    assert torch.equal(magnitudes.saturated(counts, 0.5, "e4m3").cpu(), expected)


def test_a_gpu_counts_pairs_almost_the_same():
    """A norm may be rounded to the next BF16 magnitude."""
    amax = [magnitudes.percentile(magnitudes.count_pairs(states).cpu(), 100) for states in (STATES, STATES.cuda())]
    torch.testing.assert_close(*amax, rtol=2**-7, atol=0)


@pytest.mark.parametrize("kv_format", HEADROOM)
def test_scales_of_the_embedded_model_are_those_of_a_cpu(tmp_path, loaded, kv_format):
    text, out = tmp_path / "text.txt", tmp_path / "scales.safetensors"
    text.write_text("The capital of France is Paris. " * 60)
    options = ["--text", str(text), "--out", str(out), "--headroom", "1", "--kv-format", kv_format]
    result = CliRunner().invoke(main, ["scales", "calibrate", MODEL.path, *options])
    assert result.exit_code == 0, result.stderr
    counts = collect.count(loaded, [collect.tokenize(MODEL, text.read_text())], lambda _: None, kv_format)
    scales = file.load(out, MODEL.layers, MODEL.kv_heads)
    for k, v, of_layer in zip(scales.k, scales.v, counts, strict=True):
        expected_k, expected_v = (magnitudes.scales(of_kind, kv_format, 100, 1.0) for of_kind in of_layer)
        torch.testing.assert_close(k, expected_k.repeat(1, 2) if kv_format == "int8" else expected_k, rtol=0.05, atol=0)
        torch.testing.assert_close(v, expected_v, rtol=0.05, atol=0)
