"""The int8 cache of a CPU against FP64 attention on the stored values, through vLLM's own kernel for BF16."""

import pytest
import torch

from kernels_tests.vllm_launch.cpu_batch import (
    BLOCK,
    ERROR,
    FP8,
    HEAD_DIM,
    INT8,
    KV_HEADS,
    STATIC,
    WINDOW,
    Batch,
    empty_cache,
)
from vllm_launch.plugin import cpu_storage
from vllm_launch.plugin.attention import formats
from vllm_launch.plugin.attention.formats import views
from vllm_launch.plugin.cpu_storage import TokenInt8
from vllm_launch.plugin.cpu_storage import _tokens as tokens_of


@pytest.mark.parametrize("padding", [0, 256], ids=["dense", "padded"])
@pytest.mark.parametrize("window", [-1, WINDOW])
@pytest.mark.parametrize("storage", INT8, ids=lambda storage: storage.name)
def test_a_ragged_batch_over_poisoned_pages_of_int8(storage, window, padding):
    assert Batch(storage, window=window, padding=padding).error() < ERROR


def swapped_views(*arguments):
    k, v, k_scale, v_scale = views(*arguments)
    return k, v, v_scale, k_scale


@pytest.mark.parametrize(
    ("storage", "name", "mutant"),
    [
        (TokenInt8(), "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, 2), dtype)),
        (TokenInt8(), "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, 1), dtype)),
        (TokenInt8(), "views", swapped_views),
        (TokenInt8(), "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale * 1.02, dtype)),
        (STATIC, "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.amax(-1, keepdim=True), dtype)),
        (STATIC, "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, 0), dtype)),
        (STATIC, "_tokens", lambda codes, scale, dtype: tokens_of(codes, scale.roll(1, -1), dtype)),
    ],
    ids=["next token", "next head", "K and V swapped", "2% off", "per head for per channel", "other head", "channel"],
)
def test_a_mutant_that_reads_int8_with_other_scales_is_seen(monkeypatch, storage, name, mutant):
    batch = Batch(storage)
    monkeypatch.setattr(formats if name == "views" else cpu_storage, name, mutant)
    assert not batch.error() < 2 * ERROR


def test_scales_of_another_layer_are_seen():
    batch = Batch(STATIC)
    batch.layer.layer_name = "model.layers.0.self_attn.attn"
    assert not batch.error() < 2 * ERROR


def test_int8_is_several_times_finer_than_fp8():
    """The error of attention against the values before they are stored."""
    errors = {}
    for storage in (FP8, *INT8):
        batch = Batch(storage)
        batch.texts = batch.exact
        errors[storage.name] = batch.error()
    assert errors["int8"] < 0.35 * errors["e4m3"] and errors["int8-static"] < 0.5 * errors["e4m3"], errors


@pytest.mark.parametrize("storage", INT8, ids=lambda storage: storage.name)
def test_the_codes_and_scales_of_int8_lie_as_in_a_page_of_a_gpu(storage):
    """A page: lines [kv_heads, page, K and V], then fp32 scales [K and V, kv_heads, page]; padding is not written."""
    batch = Batch(storage)
    key, value = (torch.randn(3, KV_HEADS, HEAD_DIM).bfloat16() for _ in range(2))
    cache = empty_cache(storage, 2, 0)
    batch.impl.do_kv_cache_update(batch.layer, key, value, cache, torch.tensor([BLOCK + 7, -1]))
    page = cache[1].flatten().view(torch.int8).clone()
    lines = page[: KV_HEADS * BLOCK * 2 * HEAD_DIM].view(KV_HEADS, BLOCK, 2, HEAD_DIM)
    scales = page[lines.numel() :].view(torch.float32).view(-1, KV_HEADS, BLOCK)
    for index, x in enumerate((key[0], value[0])):
        if isinstance(storage, TokenInt8):
            scale = x.float().abs().amax(-1) / 127
            assert torch.equal(scales[index, :, 7], scale)
            scale = scale[:, None]
        else:
            scale = (storage.layers[1].k, storage.layers[1].v[:, None])[index]
        assert torch.equal(lines[:, 7, index], (x.float() / scale).round().clamp(-127, 127).to(torch.int8))
    lines[:, 7] = 0
    scales[:, :, 7] = 0
    assert not page.any() and not cache[0].any()
