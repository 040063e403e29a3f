"""Cache and weights of an engine before it is measured, on a worker of plain torch modules."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench.engine.inside import weights
from bench.engine.models import SCALE
from vllm_launch.plugin.attention import formats

HIDDEN, EXPERTS, TOP = 64, 32, 4


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN)
        self.router = nn.Linear(HIDDEN, EXPERTS)


class Model(nn.Module):
    """Names as in vLLM's gpt-oss, with weights as its dummies: within ±1e-3."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(512, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)

    def experts(self, tokens: int) -> int:
        """Experts of a layer that some token takes."""
        layer = self.layers[0]
        with torch.no_grad():
            logits = layer.router(layer.input_layernorm(self.embedding(torch.arange(tokens))))
        return len(logits.topk(TOP).indices.unique())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def a_worker(*caches, model=None, rank=0):
    return SimpleNamespace(model_runner=SimpleNamespace(kv_caches=list(caches)), get_model=lambda: model, rank=rank)


def test_dummies_use_the_same_experts_and_spread_weights_all(model):
    assert model.experts(64) == TOP
    assert weights.spread_routing(a_worker(model=model)) == 2
    assert model.experts(64) == EXPERTS
    assert not any(layer.router.bias.any() for layer in model.layers)


def test_ranks_have_the_same_routers_and_embeddings_of_their_own():
    ranks = [Model(), Model()]
    for rank, model in enumerate(ranks):
        torch.manual_seed(rank)  # ranks may have drawn different numbers before
        weights.spread_routing(a_worker(model=model, rank=rank))
    routers = [model.layers[1].router.weight for model in ranks]
    assert torch.equal(*routers) and not torch.equal(routers[0], ranks[0].layers[0].router.weight)
    assert not torch.equal(*(model.embedding.weight for model in ranks))


def test_a_model_without_routers_is_refused():
    with pytest.raises(ValueError, match=r"router\.weight"):
        weights.spread_routing(a_worker(model=nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("dtype", "kv_format"),
    [
        (torch.bfloat16, "bf16"),
        (torch.uint8, "e4m3"),
        (torch.float8_e4m3fn, "e4m3"),
        (torch.uint8, "int8-static"),
    ],
)
def test_the_whole_cache_is_filled_with_normal_values(monkeypatch, dtype, kv_format):
    monkeypatch.setattr(weights, "PATTERN_VALUES", 1000)
    cache = torch.zeros(8, 2, 16, 128, dtype=dtype)
    layers = [cache.transpose(1, 2), cache]  # share their memory, as layers of two groups
    assert weights.fill_cache(a_worker(*layers), kv_format) == cache.nbytes
    stored = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "int8-static": torch.int8}[kv_format]
    values = cache.view(stored).float() * (SCALE if kv_format == "int8-static" else 1)
    assert 0.9 < values.std() < 1.1 and values.isfinite().all() and values[-1].std() > 0.9


def test_int8_pages_are_filled_with_normal_values_and_scales(monkeypatch):
    monkeypatch.setattr(weights, "PATTERN_VALUES", 10_000)  # of two pages
    cache = torch.zeros(7, 2, 16, 136, dtype=torch.int8)
    assert weights.fill_cache(a_worker(cache, cache.view(cache.shape)), "int8") == cache.nbytes
    k, v, k_scale, v_scale = formats.views(cache, "int8", 64)
    for codes, scales in ((k, k_scale), (v, v_scale)):
        values = codes.float() * scales[..., None]
        assert (scales == SCALE).all() and 0.9 < values.std() < 1.1 and values[-1].std() > 0.9


def test_layers_of_both_formats_read_finite_values():
    storage = torch.zeros(1 << 16, dtype=torch.uint8)
    weights.fill_cache(a_worker(storage.view(64, 1024), storage.view(torch.bfloat16).view(64, 512)), "e4m3")
    assert storage.view(torch.float8_e4m3fn).float().isfinite().all()
    assert storage.view(torch.bfloat16).isfinite().all()
