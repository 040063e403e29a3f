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
def layers(loaded):
    """The projections, computed once."""
    return projections(loaded)


@pytest.fixture(scope="module")
def expected(loaded, layers):
    """Direct: amax of K, rotated, and of V, [layers, 2, heads]; and of K before rotary embedding [layers, heads]."""
    keys = [[rotated(loaded, key) for key in layer["k"]] for layer in layers]
    direct = [torch.stack([amax_of(k), amax_of(layer["v"])]) for k, layer in zip(keys, layers, strict=True)]
    return torch.stack(direct), torch.stack([amax_of(layer["k"]) for layer in layers])


@pytest.fixture(scope="module")
def counts(loaded):
    return torch.stack([torch.stack(layer) for layer in collect.count(loaded, PROMPTS, lambda _: None, "e4m3")])


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


@pytest.mark.parametrize("kv_format", ["e4m3", "int8"])
def test_counting_does_not_change_the_model(loaded, kv_format):
    layers = [collect.CountingLayer(kv_format) for _ in loaded.model.layers]
    with torch.no_grad():
        for prompt in PROMPTS:  # nothing of the first is left for the second
            ids = torch.tensor([prompt])
            counted = loaded.model(input_ids=ids, past_key_values=collect.Cache(layers=layers), use_cache=True)
            plain = loaded.model(input_ids=ids, use_cache=False)
            assert torch.equal(counted.last_hidden_state, plain.last_hidden_state)


def test_prompts_add_up(loaded, counts):
    separate = [collect.count(loaded, [prompt], lambda _: None, "e4m3") for prompt in PROMPTS]
    assert torch.equal(sum(torch.stack([torch.stack(layer) for layer in layers]) for layers in separate), counts)


def pair_amax(keys: list[torch.Tensor]) -> torch.Tensor:
    """The largest norm of each rotary pair (i, i + 32) as BF16, [heads, 32]."""
    norms = [(key[..., :32].float().square() + key[..., 32:].float().square()).sqrt().bfloat16() for key in keys]
    return torch.cat(norms, dim=1).float().amax(dim=(0, 1))


@pytest.fixture(scope="module")
def pairs(loaded, layers):
    """Counts for int8, and direct: the amax of each rotary pair of K, [layers, heads, 32]."""
    counts = collect.count(loaded, PROMPTS, lambda _: None, "int8")
    direct = torch.stack([pair_amax([rotated(loaded, key) for key in layer["k"]]) for layer in layers])
    return counts, direct


def test_amax_of_each_rotary_pair_equals_a_direct_computation(pairs, expected):
    counts, direct = pairs
    for layer, of_layer in enumerate(counts):
        assert torch.equal(magnitudes.percentile(of_layer.k, 100), direct[layer])
        assert torch.equal(magnitudes.percentile(of_layer.v, 100), expected[0][layer, 1])
        assert (of_layer.k.sum(-1) == 500).all() and (of_layer.v.sum(-1) == 500 * 64).all()


PAIR_MUTANTS = {
    "layers shifted": lambda amax: amax.roll(1, 0),
    "heads permuted": lambda amax: amax.flip(1),
    "pairs shifted": lambda amax: amax.roll(1, 2),
    "pairs reversed": lambda amax: amax.flip(2),
    "heads and pairs transposed": lambda amax: amax.transpose(1, 2).reshape(amax.shape),
    "one for the head": lambda amax: amax.amax(2, keepdim=True).expand(amax.shape),
}


@pytest.mark.parametrize("name", PAIR_MUTANTS)
def test_a_collector_that_mixes_up_pairs_differs_in_every_layer(pairs, name):
    counts, direct = pairs
    for of_layer, mutant in zip(counts, PAIR_MUTANTS[name](direct), strict=True):
        assert not torch.equal(magnitudes.percentile(of_layer.k, 100), mutant)


@torch.no_grad()
def test_interleaved_pairs_would_show(pairs, loaded, layers):
    """Pairs (2i, 2i + 1), as other models have them, have other norms."""
    counts, _ = pairs
    for of_layer, layer in zip(counts, layers, strict=True):
        keys = [rotated(loaded, key).unflatten(-1, (32, 2)).transpose(-1, -2).flatten(-2) for key in layer["k"]]
        assert not torch.equal(magnitudes.percentile(of_layer.k, 100), pair_amax(keys))


def test_the_model_computes_in_bf16(loaded):
    assert loaded.model.layers[0].self_attn.k_proj.weight.dtype == torch.bfloat16
