"""Attention over a ring equals attention over a rolled cache: every storage, both backends, filling and full."""

import pytest
import torch

from kernels_tests.lowp.static_cache.frames import FRAME_TOKENS, LAYERS, WINDOWS, frame, plain, quantized, quantized_as
from kernels_tests.lowp.static_cache.rolled import (
    CASES,
    STORAGES,
    exact_attention,
    relative_error,
    rounded,
    worst_error,
)
from lowp.formats import FORMATS
from lowp.paged.tight import problems
from lowp.static_cache import api, attend, flex, store
from lowp.static_cache import ring as rings
from lowp.static_cache.ring import history, written
from lowp.static_cache.slots import frame_slots, slot_positions
from lowp.static_cache.store import values_per_code

THREE_WINDOWS = 3 * max(WINDOWS) // FRAME_TOKENS
FRAMES = 6  # one and a half global windows, three local ones
BOUND = 1e-5  # fp32 against fp64
MUTANT_BOUND = 1e-2


def error_of(name: str, backend: str, frames: int = FRAMES) -> float:
    k_storage, v_storage, _ = STORAGES[name]
    return worst_error(quantized_as(k_storage, v_storage), backend, frames, k_storage, v_storage)


@pytest.mark.parametrize("backend", ["reference", "flex"])
def test_a_ring_equals_a_rolled_cache_over_three_windows(backend):
    assert worst_error(plain(), backend, THREE_WINDOWS) < BOUND


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_quantized_ring_equals_rolled_dequantised_cache(name, backend):
    assert error_of(name, backend) < BOUND


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_bf16_queries_pass_the_tight_test(name, backend):
    k_storage, v_storage, _ = STORAGES[name]
    cache = quantized_as(k_storage, v_storage, torch.bfloat16)
    for number in range(FRAMES):
        q, k, v = frame(number, torch.bfloat16)
        for layer in LAYERS:
            past = [x[:, :, written(cache.rings[layer])[: WINDOWS[layer]]] for x in history(cache.rings[layer])]
            exact = exact_attention(q, *(torch.cat([x, new.float()], 2) for x, new in zip(past, (k, v), strict=True)))
            out = attend(q, cache, layer, k, v, backend)
            rows = [x.transpose(1, 2).flatten(0, 1) for x in (out, exact)]
            assert not problems(*rows, rel_l2=5e-3)
            cache.update(k, v, layer)


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_unwritten_slots_change_nothing(name, backend, monkeypatch):
    """Slots are filled with the largest finite code (448 in e4m3, 127 in int8), two of 4 bits in a byte."""
    make_store = store.make_store

    def filled(*arguments):
        allocated = make_store(*arguments)
        largest = FORMATS[allocated.kv_format].largest if allocated.kv_format in FORMATS else 448.0
        code = 0x77 if values_per_code(allocated.kv_format) == 2 else min(largest, 57344.0)
        allocated.codes.copy_(torch.tensor(code).to(allocated.codes.dtype))
        return allocated

    monkeypatch.setattr(rings, "make_store", filled)
    assert error_of(name, backend, frames=3) < BOUND


@pytest.mark.parametrize("backend", ["reference", "flex"])
def test_reset_empties_a_cache(backend):
    k_storage, v_storage, _ = STORAGES["K int8 token, V int8 head"]
    cache = quantized_as(k_storage, v_storage)
    assert worst_error(cache, backend, 5, k_storage, v_storage) < BOUND
    cache.reset()
    assert cache.get_offset(0) == 0
    assert worst_error(cache, backend, 5, k_storage, v_storage) < BOUND


def test_the_mixed_layers_of_a_model_each_keep_their_format():
    cache = quantized(k_format=[None, "int8"], v_format=["e4m3", "int8"], v_scale="token_head")
    formats = [(layer["k_format"], layer["v_format"]) for layer in cache.memory()["layers"]]
    assert formats == [("fp32", "e4m3"), ("int8", "int8")]


def test_v_has_4_bits_on_late_layers_alone():
    """The mixed policy: 8 bits on the others."""
    cache = quantized(v_format=["e4m3", "mxfp4"], v_scale=["token_head", "block"])
    assert [layer["v_format"] for layer in cache.memory()["layers"]] == ["e4m3", "mxfp4"]
    storages = [("e4m3", "token_head"), ("mxfp4", "block")]
    frames = [frame(number) for number in range(FRAMES)]
    for q, k, v in frames:
        for layer in LAYERS:
            attend(q, cache, layer, k, v)
            cache.update(k, v, layer)
    for layer, storage in enumerate(storages):
        newest = torch.cat([rounded(v, *storage) for _, _, v in frames[-WINDOWS[layer] // FRAME_TOKENS :]], 2)
        ring = cache.rings[layer]
        order = slot_positions(torch.arange(WINDOWS[layer]), ring.end, WINDOWS[layer]).argsort()
        assert torch.equal(history(ring)[1][:, :, order], newest)


def test_only_late_layers_are_quantized():
    cache = quantized(k_format="int8", v_format="e4m3", kv_late_layers=1)
    formats = [(layer["k_format"], layer["v_format"]) for layer in cache.memory()["layers"]]
    assert formats == [("fp32", "fp32"), ("int8", "e4m3")]
    assert cache.rings[0].has_tail and not cache.rings[1].has_tail


@pytest.mark.parametrize(
    "storage",
    [
        {"v_format": "int8"},
        {"k_format": "mxfp8", "k_scale": "block", "v_format": "mxfp4", "v_scale": "block"},
        {"k_format": "int8", "k_scale": "ema", "v_format": "int4"},
    ],
)
def test_tail_only_attends_to_the_newest_tokens(storage):
    tail = 2 * FRAME_TOKENS
    cache, local = quantized(**storage, tail_only=tail), quantized(**storage, windows=(tail, tail))
    for number in range(FRAMES):
        q, k, v = frame(number)
        for layer in LAYERS:
            assert relative_error(attend(q, cache, layer, k, v), attend(q, local, layer, k, v).double()) < BOUND
            for each_cache in (cache, local):
                each_cache.update(k, v, layer)
    with pytest.raises(NotImplementedError, match="reference with tail_only"):
        attend(q, cache, 0, k, v, "flex")


@pytest.mark.parametrize("empty", [False, True])
def test_segments_merge_by_their_log_sum_exp(empty):
    q, k, v = frame(0)
    q, k, v = (x.double() for x in (q * 4, k, v))
    parts, lse = [], []
    for start, stop in ((0, 3), (3, 8)):
        scores = q @ k[:, :, start:stop].transpose(-1, -2) / q.shape[-1] ** 0.5
        parts.append(scores.softmax(-1) @ v[:, :, start:stop])
        lse.append(scores.logsumexp(-1))
    if empty:
        parts[0], lse[0] = torch.zeros_like(parts[0]), torch.full_like(lse[0], -torch.inf)
        assert relative_error(flex.merge(parts[0], lse[0], parts[1], lse[1]), parts[1]) < BOUND
    else:
        assert relative_error(flex.merge(parts[0], lse[0], parts[1], lse[1]), exact_attention(q, k, v)) < BOUND


def shifted_write(end, frame_tokens, window):
    return (frame_slots(end, frame_tokens, window) + frame_tokens) % window


def shifted_positions(slots, end, window):
    return slot_positions(slots, end + FRAME_TOKENS, window)


@pytest.mark.parametrize(
    ("function", "mutant", "backend"),
    [
        ("ring.frame_slots", shifted_write, "reference"),
        ("ring.frame_slots", shifted_write, "flex"),
        ("ring.slot_positions", shifted_positions, "reference"),
        ("masks.slot_positions", shifted_positions, "flex"),
    ],
)
def test_slot_map_shifted_by_a_frame_fails(monkeypatch, function, mutant, backend):
    monkeypatch.setattr(f"lowp.static_cache.{function}", mutant)
    assert error_of("K int8 token, V int8 head", backend) > MUTANT_BOUND


def test_vs_scale_in_the_denominator_fails_in_flex(monkeypatch):
    """exp(lse) of the history, times V's scale: the probabilities are scaled before their sum."""
    merge, scale = flex.merge, STORAGES["K int8 token, V int8 head"][1][1]
    monkeypatch.setattr(flex, "merge", lambda a, a_lse, b, b_lse: merge(a, a_lse + scale.log()[:, None], b, b_lse))
    assert error_of("K int8 token, V int8 head", "flex") > MUTANT_BOUND


def test_vs_scale_in_the_denominator_fails_in_the_reference(monkeypatch):
    def mutant(q, ring, new_k, new_v):
        k, v = history(ring)
        scale = torch.cat([ring.v.scale, torch.ones(*new_v.shape[:3], 1)], 2)
        k, v = torch.cat([k, new_k], 2), torch.cat([v, new_v], 2)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + scale.log().transpose(-1, -2)
        return scores.masked_fill(~written(ring), -torch.inf).softmax(-1) @ (v / scale)

    monkeypatch.setitem(api.BACKENDS, "reference", mutant)
    assert error_of("K int8 token, V int8 token", "reference") > MUTANT_BOUND


def test_the_scale_of_the_wrong_token_fails_in_the_reference(monkeypatch):
    dequantize = store.dequantize

    def mutant(values, scale, kv_format):
        return dequantize(values, None if scale is None else scale.roll(1, dims=2), kv_format)

    monkeypatch.setattr(store, "dequantize", mutant)
    assert error_of("K int8 token, V int8 token", "reference") > MUTANT_BOUND


def test_the_scale_of_the_wrong_token_fails_in_flex(monkeypatch):
    def mutant(chosen):
        scale = chosen.scale.roll(1, dims=2)
        return lambda score, batch, head, query, slot: score * scale[batch, head, slot, 0]

    monkeypatch.setattr(flex, "key_scale", mutant)
    assert error_of("K int8 token, V int8 head", "flex") > MUTANT_BOUND
