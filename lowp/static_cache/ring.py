"""The ring of one layer: frames in slots that are never moved. Functions that write a frame and read the history.

Keys are rotated by their position before they are stored, so that their order in the ring does not matter to attention.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask

from lowp.static_cache import stats
from lowp.static_cache.masks import build_block_mask, refresh_block_mask
from lowp.static_cache.slots import frame_slots, newest_positions, slot_positions
from lowp.static_cache.store import NAMES, Storage, Store, as_bytes, decode, encode, make_store


@dataclass(frozen=True)
class Ring:
    """K and V of one layer, the first `window` slots of each store, and what attention needs beside them.

    window: tokens of history, a multiple of frame_tokens. dtype: the model's. end: committed tokens, int64, no axes.
    If both stores hold `dtype`, a tail of frame_tokens slots behind the window holds the current frame, and attention
    reads one tensor. Otherwise there is no tail: the current frame stays unrounded, a second segment of attention.
    Every tensor keeps its address.
    """

    window: int
    frame_tokens: int
    dtype: torch.dtype
    k: Store
    v: Store
    end: torch.Tensor
    block_mask: BlockMask
    counters: stats.Counters

    @property
    def has_tail(self) -> bool:
        return self.k.codes.shape[2] > self.window


def make_ring(window: int, frame_shape: tuple, dtype: torch.dtype, device: torch.device, storage: Storage) -> Ring:
    """Allocate an empty ring. frame_shape: [batch, heads, frame_tokens, head_dim]."""
    batch, heads, frame_tokens, head_dim = frame_shape
    tail = frame_tokens if {storage.k_format, storage.v_format} == {NAMES[dtype]} else 0
    shape = (batch, heads, window + tail, head_dim)
    k = make_store(shape, storage.k_format, storage.k_scale, 100.0, device)
    v = make_store(shape, storage.v_format, storage.v_scale, storage.v_percentile, device)
    end = torch.zeros((), dtype=torch.int64, device=device)
    block_mask = build_block_mask(window, frame_tokens, tail, end)
    ring = Ring(window, frame_tokens, dtype, k, v, end, block_mask, stats.make_counters(device))
    for tensor in state(ring):
        torch._dynamo.mark_static_address(tensor)
    return ring


def state(ring: Ring) -> list[torch.Tensor]:
    """List every tensor that a ring holds."""
    mask = ring.block_mask
    blocks = [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices]
    return [*ring.k.tensors, *ring.v.tensors, ring.end, *blocks, *ring.counters.tensors]


def commit(ring: Ring, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write a frame over the oldest one, in the storage formats."""
    slots = frame_slots(ring.end, ring.frame_tokens, ring.window)
    for row, (store, frame) in enumerate(((ring.k, k), (ring.v, v))):
        quantized, scale = encode(store, frame)
        as_bytes(store.codes).index_copy_(2, slots, as_bytes(quantized.values))
        if scale is not None:
            store.scale.index_copy_(2, slots, as_bytes(scale))
        stats.count_frame(ring.counters, row, store, frame, quantized, scale)
    ring.end.add_(ring.frame_tokens)
    refresh_block_mask(ring.block_mask, ring.window, ring.end)


def write_tail(ring: Ring, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write the current frame behind the window of a ring that has a tail.

    By index: compiled code would copy the whole ring for an assignment to a slice that attention reads.
    """
    slots = ring.window + torch.arange(ring.frame_tokens, device=ring.end.device)
    ring.k.codes.index_copy_(2, slots, k)
    ring.v.codes.index_copy_(2, slots, v)


def history(ring: Ring, newest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the window's keys and values in fp32, those of unwritten slots too: `written` tells them apart.

    newest: take the newest tokens only, oldest first; None takes every slot, in the order of the ring.
    """
    if newest is None:
        return decode(ring.k)[:, :, : ring.window], decode(ring.v)[:, :, : ring.window]
    slots = newest_positions(ring.end, newest) % ring.window
    return decode(ring.k, slots), decode(ring.v, slots)


def view(ring: Ring, new_k: torch.Tensor | None, new_v: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the memory of a ring that has a tail, with the current frame written to it if given."""
    if new_k is None:
        return ring.k.codes[:, :, : ring.window], ring.v.codes[:, :, : ring.window]
    write_tail(ring, new_k, new_v)
    return ring.k.codes, ring.v.codes


def read(ring: Ring, new_k: torch.Tensor | None, new_v: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise the whole window into new tensors, followed by the current frame if given."""
    k, v = history(ring)
    k, v = k.to(ring.dtype), v.to(ring.dtype)
    return (k, v) if new_k is None else (torch.cat([k, new_k], 2), torch.cat([v, new_v], 2))


def read_newest(ring: Ring, tokens: int, new_k, new_v, scratch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise the newest tokens into scratch [2, ...], followed by the current frame if given."""
    k, v = history(ring, tokens)
    memory = scratch[:, :, :, : tokens + (0 if new_k is None else ring.frame_tokens)]
    memory[:, :, :, :tokens].copy_(torch.stack([k, v]))
    if new_k is not None:
        memory[:, :, :, tokens:].copy_(torch.stack([new_k, new_v]))
    return memory[0], memory[1]


def written(ring: Ring, newest: int | None = None) -> torch.Tensor:
    """Return which tokens of the history and the current frame are written, bool; newest: as in `history`."""
    if newest is None:
        slots = torch.arange(ring.window, device=ring.end.device)
        positions = slot_positions(slots, ring.end, ring.window)
    else:
        positions = newest_positions(ring.end, newest)
    return F.pad(positions >= 0, (0, ring.frame_tokens), value=True)


def clear(ring: Ring) -> None:
    """Forget every frame and count. Stored values stay: slots that are not written are masked, and stay finite."""
    ring.end.zero_()
    for store in (ring.k, ring.v):
        if store.running_amax is not None:
            store.running_amax.zero_()
    stats.clear_counters(ring.counters)
    refresh_block_mask(ring.block_mask, ring.window, ring.end)
