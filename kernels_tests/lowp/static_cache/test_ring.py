"""Slots, masks and memory of a ring: what `get`, `update`, `written` and the block masks hold at each frame."""

import pytest
import torch

from kernels_tests.lowp.static_cache.frames import (
    BATCH,
    FRAME_TOKENS,
    HEAD_DIM,
    HEADS,
    LAYERS,
    WINDOWS,
    frame,
    plain,
    quantized,
)
from kernels_tests.lowp.static_cache.rolled import RolledCache
from lowp.static_cache.masks import build_block_mask, refresh_block_mask
from lowp.static_cache.ring import state
from lowp.static_cache.slots import frame_slots, slot_positions

FRAMES = 10


@pytest.mark.parametrize(("window", "frame_tokens"), [(12, 4), (8, 8), (15, 5)])
def test_each_slot_holds_the_newest_position_that_was_written_to_it(window, frame_tokens):
    slots = [-1] * window
    for end in range(0, 4 * window, frame_tokens):
        positions = slot_positions(torch.arange(window), torch.tensor(end), window)
        assert [max(-1, position) for position in positions.tolist()] == slots
        next_slots = frame_slots(torch.tensor(end), frame_tokens, window).tolist()
        for position, slot in enumerate(next_slots, start=end):
            slots[slot] = position


@pytest.mark.parametrize(
    ("window", "frame_tokens", "tail"),
    [(384, 16, 16), (384, 16, 0), (512, 64, 64), (512, 256, 256), (24, 8, 8), (20, 4, 0)],
)
def test_blocks_cover_the_written_slots_alone(window, frame_tokens, tail):
    end = torch.zeros((), dtype=torch.int64)
    mask = build_block_mask(window, frame_tokens, tail, end)
    tensors = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    addresses = [x.data_ptr() for x in tensors]
    slots = torch.arange(window + tail)
    for _ in range(2 * window // frame_tokens):
        partial, full = (
            indices[0, 0, 0, : count.item()].tolist()
            for count, indices in ((tensors[0], tensors[1]), (tensors[2], tensors[3]))
        )
        assert len({*partial, *full}) == len(partial) + len(full), "a block is read twice"
        blocks = slots // mask.BLOCK_SIZE[1]
        evaluated = mask.mask_mod(0, 0, 0, slots)
        visible = torch.isin(blocks, torch.tensor(full)) | torch.isin(blocks, torch.tensor(partial)) & evaluated
        written = (slots < end) | (slots >= window)
        assert torch.equal(visible, written) and torch.equal(evaluated, written)
        assert len(partial) <= 1 + -(-tail // mask.BLOCK_SIZE[1])
        end.add_(frame_tokens)
        refresh_block_mask(mask, window, end)
    assert window // mask.BLOCK_SIZE[1] == tensors[2].item(), "a full window evaluates no mask"
    assert [x.data_ptr() for x in tensors] == addresses


@pytest.mark.parametrize("make", [plain, quantized])
def test_get_returns_the_history_and_the_current_frame(make):
    """In `plain` bit for bit; positions tell the order."""
    cache = make(v_format="int8") if make is quantized else make()
    truth = [RolledCache(window) for window in WINDOWS]
    for number in range(FRAMES):
        _, k, v = frame(number)
        for layer in LAYERS:
            window = WINDOWS[layer]
            positions = slot_positions(torch.arange(window), cache.get_offset(layer), window)
            order = positions.argsort()[(positions < 0).sum() :]
            written = cache.written(layer)
            values = cache.get(layer, k, v)
            exact = truth[layer].concatenate(k, v)
            for x, expected, bound in zip(values, exact, (0, 0 if make is plain else 2e-2), strict=True):
                assert x.shape[2] == window + FRAME_TOKENS
                ordered = torch.cat([x[:, :, order], x[:, :, window:]], 2)
                assert (ordered - expected).abs().max() <= bound * expected.abs().max()
                assert written.sum() == expected.shape[2] and written[order].all() and written[window:].all()
            assert [x.shape[2] for x in cache.get(layer)] == [window] * 2
            cache.update(k, v, layer)
            truth[layer].update(k, v)


def test_tail_only_dequantises_the_newest_tokens_into_memory_that_layers_share():
    tail = 3 * FRAME_TOKENS
    cache = quantized(v_format="int8", tail_only=tail)
    truth = RolledCache(tail)
    for number in range(FRAMES):
        _, k, v = frame(number)
        k_past, v_past = cache.get(0, k, v)
        written = cache.written(0)
        expected = truth.concatenate(k, v)
        assert torch.equal(k_past[:, :, written], expected[0])
        assert (v_past[:, :, written] - expected[1]).abs().max() < 2e-2 * v.abs().max()
        assert written.sum() == expected[0].shape[2]
        for layer in LAYERS:
            cache.update(k, v, layer)
        truth.update(k, v)
    addresses = {x.untyped_storage().data_ptr() for layer in LAYERS for x in cache.get(layer)}
    assert addresses == {cache.scratch.untyped_storage().data_ptr()}


def test_disabled_updates_change_nothing():
    cache = plain()
    _, k, v = frame(0)
    cache.update(k, v, 0)
    before = [x.clone() for x in state(cache.rings[0])]
    cache.disable_cache_updates()
    cache.update(k, v, 0)
    assert all(torch.equal(x, y) for x, y in zip(state(cache.rings[0]), before, strict=True))
    cache.enable_cache_updates()
    cache.update(k, v, 0)
    assert [int(cache.get_offset(layer)) for layer in LAYERS] == [2 * FRAME_TOKENS, 0]


def test_a_local_layer_holds_its_own_window_only():
    sizes = [layer["bytes"] for layer in plain().memory()["layers"]]
    assert sizes[0] / sizes[1] == WINDOWS[0] / WINDOWS[1]


def test_each_slot_keeps_its_scale():
    cache = quantized(frame_tokens=1, windows=(1, 1), v_format="int8")
    for value in (3.0, 0.5):
        v = torch.full((BATCH, HEADS, 1, HEAD_DIM), value)
        cache.update(v, v, 0)
        assert torch.equal(cache.get(0)[1], v)
