"""The int8 scale file of the embedded model that ships beside the profiles, on held-out text."""

import json
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from kernels_tests.vllm_launch.scales.conftest import MODEL
from lowp.formats import dequantize, quantize
from vllm_launch import model, profile
from vllm_launch.scales import HEADROOM, collect, file

PATH = profile.FOLDER / "tiny_gpt_oss.int8.safetensors"
TOKENS = 768


@pytest.fixture(scope="module")
def scales():
    return file.load(PATH, MODEL.layers, MODEL.kv_heads)


@pytest.fixture(scope="module")
@torch.no_grad()
def states(loaded):
    """Keys and values of held-out text for each layer, [kv_heads, tokens, head_dim]."""
    lines = (model.EMBEDDED / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    ids = collect.tokenize(MODEL, "\n".join(json.loads(line)["text"] for line in lines[::8]))[:TOKENS]
    cache = DynamicCache()
    loaded.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def test_it_is_the_embedded_model_s(scales):
    file.check_model(scales, PATH, Path(MODEL.path) / "config.json")
    file.check_format(scales, PATH, "int8")
    origin = scales.origin
    assert (origin.headroom, origin.percentile, origin.saturated_scaled) == (HEADROOM["int8"], 100, 0)
    assert not origin.commit.endswith("dirty") and origin.commit != "unknown"
    assert all(k.shape == (MODEL.kv_heads, MODEL.head_dim) for k in scales.k)


def stored(states: torch.Tensor, scale: torch.Tensor) -> tuple[float, float]:
    """Relative L2 error and share of saturated values of [kv_heads, tokens, head_dim]; scale broadcasts."""
    quantized = quantize(states, "int8", scale)
    error = dequantize(quantized.values, scale) - states.float()
    return float(error.norm() / states.float().norm()), float(quantized.saturated / states.numel())


def test_held_out_keys_and_values_fit(scales, states):
    for (keys, values), k, v in zip(states, scales.k, scales.v, strict=True):
        (k_error, k_saturated), (v_error, v_saturated) = stored(keys, k[:, None]), stored(values, v[:, None, None])
        assert k_error < 0.012 and v_error < 0.016
        assert k_saturated < 1e-3 and v_saturated < 1e-4


MUTANTS = {
    "heads": lambda k: k.flip(0),
    "channels": lambda k: k.roll(1, 1),
    "a scale for the head": lambda k: k.amax(1, keepdim=True).expand(k.shape),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mixed_up_scales_are_worse(scales, states, mutant):
    """In the layer where it shows most; all are as close as its heads are alike."""
    keys = [keys for keys, _ in states]
    right = [stored(of_layer, k[:, None])[0] for of_layer, k in zip(keys, scales.k, strict=True)]
    wrong = [stored(of_layer, MUTANTS[mutant](k)[:, None])[0] for of_layer, k in zip(keys, scales.k, strict=True)]
    assert max(error / expected for error, expected in zip(wrong, right, strict=True)) > 1.2
