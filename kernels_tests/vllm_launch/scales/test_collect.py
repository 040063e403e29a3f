"""Counted keys and values of the embedded model, against its projections and a rotary embedding written anew."""

import pytest
import torch

from kernels_tests.vllm_launch.scales.conftest import MODEL
from vllm_launch.scales import collect, magnitudes

PROMPTS = [list(range(40, 340)), list(range(900, 1100))]  # the first is longer than the window of 128


def rotated(loaded, key: torch.Tensor) -> torch.Tensor:
    """Keys [1, tokens, heads, 64] at positions 0, 1, ...: pairs (i, i + 32) turned by the position's angle."""
    cos, sin = loaded.model.rotary_emb(key, torch.arange(key.shape[1])[None])
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = key.split(32, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@torch.no_grad()
def projections(loaded) -> list[dict[str, list[torch.Tensor]]]:
    """Of each layer the outputs of k_proj and v_proj for each prompt, [1, tokens, heads, 64]."""
    outputs = [{"k": [], "v": []} for _ in loaded.model.layers]
    hooks = []

    def recorder(states):
        def record(_linear, _inputs, output):
            states.append(output.unflatten(-1, (-1, 64)))

        return record

    for layer, states in zip(loaded.model.layers, outputs, strict=True):
        hooks.append(layer.self_attn.k_proj.register_forward_hook(recorder(states["k"])))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(recorder(states["v"])))
    for prompt in PROMPTS:
        loaded.model(input_ids=torch.tensor([prompt]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


def amax_of(states: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([text.abs().float().amax(dim=(0, 1, 3)) for text in states]).amax(0)


@pytest.fixture(scope="module")
def expected(loaded):
    """Direct: amax of K, rotated, and of V, [layers, 2, heads]; and of K before rotary embedding [layers, heads]."""
    layers = projections(loaded)
    keys = [[rotated(loaded, key) for key in layer["k"]] for layer in layers]
    direct = [torch.stack([amax_of(k), amax_of(layer["v"])]) for k, layer in zip(keys, layers, strict=True)]
    return torch.stack(direct), torch.stack([amax_of(layer["k"]) for layer in layers])


@pytest.fixture(scope="module")
def counts(loaded):
    return torch.stack(collect.count(loaded, PROMPTS, lambda _: None))


def test_amax_equals_a_direct_computation(counts, expected):
    assert counts.shape == (MODEL.layers, 2, MODEL.kv_heads, magnitudes.MAGNITUDES)
    assert torch.equal(magnitudes.percentile(counts, 100), expected[0])
    assert (counts.sum(-1) == 500 * 64).all()


def before_rotary(amax, raw):
    return torch.stack([raw, amax[:, 1]], dim=1)


MUTANTS = {
    "K and V swapped": lambda amax, _raw: amax.flip(1),
    "layers shifted": lambda amax, _raw: amax.roll(1, 0),
    "heads permuted": lambda amax, _raw: amax.flip(2),
    "before rotary": before_rotary,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_collector_differs_in_every_layer(counts, expected, name):
    actual = magnitudes.percentile(counts, 100)
    wrong = MUTANTS[name](*expected)
    assert all(not torch.equal(right, mutant) for right, mutant in zip(actual, wrong, strict=True))


def test_counting_does_not_change_the_model(loaded):
    layers = [collect.CountingLayer() for _ in loaded.model.layers]
    with torch.no_grad():
        for prompt in PROMPTS:  # nothing of the first is left for the second
            ids = torch.tensor([prompt])
            counted = loaded.model(input_ids=ids, past_key_values=collect.Cache(layers=layers), use_cache=True)
            plain = loaded.model(input_ids=ids, use_cache=False)
            assert torch.equal(counted.last_hidden_state, plain.last_hidden_state)


def test_prompts_add_up(loaded, counts):
    separate = [torch.stack(collect.count(loaded, [prompt], lambda _: None)) for prompt in PROMPTS]
    assert torch.equal(sum(separate), counts)


def test_the_model_computes_in_bf16(loaded):
    assert loaded.model.layers[0].self_attn.k_proj.weight.dtype == torch.bfloat16
