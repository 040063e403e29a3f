"""The widened FP8 cache against FP64 attention on the stored values, through vLLM's own kernel for BF16."""

import math

import pytest
import torch

from kernels_tests.vllm_launch.cpu_batch import (
    BLOCK,
    E4M3,
    E5M2,
    ERROR,
    FP8,
    HEAD_DIM,
    INT8,
    KV_HEADS,
    NAN_CODE,
    WINDOW,
    Batch,
    empty_cache,
)
from vllm_launch import plugin
from vllm_launch.plugin import cpu_storage, cpu_widen
from vllm_launch.plugin.cpu_storage import Fp8, to_fp8, widen
from vllm_launch.plugin.cpu_widen import plan_scratch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
def test_every_code_widens_to_its_value_and_nan_to_nan(fp8, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    values = widen(codes.view(2, 128), fp8, dtype, 0.5).flatten()
    assert torch.equal(values.nan_to_num(7), (codes.view(fp8).float() * 0.5).to(dtype).nan_to_num(7))
    assert values[NAN_CODE].isnan()


@pytest.mark.parametrize("window", [-1, WINDOW])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("fp8", [E4M3, E5M2])
def test_a_ragged_batch_over_poisoned_pages(fp8, scales, window):
    assert Batch(Fp8(fp8), scales, window).error() < ERROR


@pytest.mark.parametrize("storage", [FP8, *INT8], ids=lambda storage: storage.name)
@pytest.mark.parametrize("sinks", [-1e4, 0.0, 12.0])
def test_extreme_sinks(sinks, storage):
    """No sink at all, one of an average key's weight, one that takes nearly all the weight."""
    assert Batch(storage, sinks=sinks).error() < ERROR


def test_a_nan_that_was_stored_comes_out():
    batch = Batch()
    batch.cache[batch.table[0, 0]] = NAN_CODE
    assert math.isnan(batch.error())


def shifted_pages(table, *lengths):
    scratch, over = plan_scratch(table, *lengths)
    return scratch, over.roll(1, dims=1)


def late_window(table, seq_lens, query_lens, block, window):
    return plan_scratch(table, seq_lens, query_lens, block, window - 1)


@pytest.mark.parametrize(
    ("window", "module", "name", "mutant"),
    [
        (-1, cpu_widen, "plan_scratch", shifted_pages),
        (WINDOW, cpu_widen, "plan_scratch", late_window),
        (-1, cpu_storage, "widen", lambda codes, fp8, dtype, scale: widen(codes, fp8, dtype, 1.0)),
        (-1, cpu_storage, "widen", lambda codes, fp8, dtype, scale: widen(codes, E5M2, dtype, scale)),
        (-1, cpu_storage, "to_fp8", lambda x, scale, fp8: to_fp8(x, scale * 1.5, fp8)),
    ],
    ids=["pages shifted", "window too short", "scale lost", "other format", "written at another scale"],
)
def test_a_mutant_is_seen(monkeypatch, window, module, name, mutant):
    monkeypatch.setattr(module, name, mutant)
    assert not Batch(scales=(0.5, 0.25), window=window).error() < 2 * ERROR


@pytest.mark.parametrize("change", [lambda sinks: None, lambda sinks: sinks.roll(1)], ids=["dropped", "shifted"])
def test_wrong_sinks_are_seen(change):
    batch = Batch()
    batch.impl.sinks = change(batch.sinks)
    assert batch.error() > 2 * ERROR


def test_only_the_pages_in_a_window_are_read_once_and_no_more():
    table = torch.tensor([[5, 6, 7, 8, 0], [5, 9, 0, 0, 0]], dtype=torch.int32)  # page 5: a shared prefix
    seq_lens, query_lens = torch.tensor([449, 200], dtype=torch.int32), torch.tensor([1, 100], dtype=torch.int32)
    scratch, over = plan_scratch(table, seq_lens, query_lens, BLOCK, WINDOW)
    assert scratch.pages.tolist() == [0, 5, 7, 8, 9]
    assert over.tolist() == [[0, 0, 2, 3], [1, 4, 0, 0]]
    assert (scratch.slots.view(-1, BLOCK) >= 0).sum(1).tolist() == [0, 128, 128, 65, 72]
    all_pages, _ = plan_scratch(table, seq_lens, query_lens, BLOCK, -1)
    assert all_pages.pages.tolist() == [0, 5, 6, 7, 8, 9]


def test_the_cache_holds_the_rounded_codes_and_padding_is_not_written():
    batch = Batch()
    key, value = (torch.randn(3, KV_HEADS, HEAD_DIM).bfloat16() * 300 for _ in range(2))
    cache = empty_cache(batch.impl.storage, 2, 0)
    batch.impl.do_kv_cache_update(batch.layer, key, value, cache, torch.tensor([BLOCK + 7, -1]))
    stored = cache.view(2, BLOCK, 2, KV_HEADS, HEAD_DIM)[1, 7].view(E4M3).float()
    right = torch.stack([key[0], value[0]]).float().clamp(-448, 448).to(E4M3).float()
    assert torch.equal(stored, right) and right.abs().max() == 448
    cache.view(2, BLOCK, 2, KV_HEADS, HEAD_DIM)[1, 7] = 0
    assert not cache.any()


@pytest.mark.parametrize(
    ("setting", "avx512", "amx", "chosen"),
    [
        (None, True, False, "native"),
        (None, False, True, "native"),
        (None, False, False, "widened"),
        ("", False, False, "widened"),
        ("widened", True, True, "widened"),
        ("native", False, False, "native"),
    ],
)
def test_which_attention_is_chosen(monkeypatch, setting, avx512, amx, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.delenv(plugin.CPU_ATTENTION, raising=False)
    if setting is not None:
        monkeypatch.setenv(plugin.CPU_ATTENTION, setting)
    assert plugin.cpu_attention() == chosen


def test_another_attention_is_refused(monkeypatch):
    monkeypatch.setenv(plugin.CPU_ATTENTION, "fast")
    with pytest.raises(ValueError, match="FP8_SINKS_CPU_ATTENTION=fast: expected native or widened"):
        plugin.cpu_attention()
