"""Prefill attention: FlashAttention over BF16 keys and values, whatever the cache's format.

Requests without context: over the keys and values just computed. With context: the context is gathered out of the cache
and dequantised into BF16 scratch, the new tokens' own keys are written behind it, and the same call runs over both. A
request that does not fit into the scratch runs in several calls, merged by their LSE.
"""

from typing import NamedTuple

import torch

from lowp.cache_read import cache_read
from lowp.cache_write import cache_write
from vllm_launch.plugin.attention.buffers import SCRATCH_PAGE
from vllm_launch.plugin.attention.decode import Cache
from vllm_launch.plugin.attention.flash_attention import Attention
from vllm_launch.plugin.attention.metadata import Group, Piece, new_key_rows, offsets


class Call(NamedTuple):
    """A piece and its device tensors.

    starts, ends, cu_keys: int32, [rows] and [rows + 1], as `cache_read` takes them. new_rows: int64 scratch rows of the
    new tokens' keys, None if no context is read.
    """

    piece: Piece
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor
    new_rows: torch.Tensor | None


class Tokens(NamedTuple):
    """Query, key and value of a step's new tokens: [tokens, heads, head_dim], bf16."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def upload(groups: tuple[Group, ...], device: torch.device) -> tuple[tuple[Call, ...], ...]:
    """Copy the numbers of all pieces to the device, in two copies."""
    int32: list[list[int]] = []
    int64: list[list[int]] = []
    for piece in (piece for group in groups for piece in group):
        int32 += [offsets(piece.query_lengths), offsets(piece.key_lengths), piece.starts, piece.ends]
        int64 += [new_key_rows(piece) if piece.causal and piece.reads_cache else []]
    numbers, rows = iter(_to_device(int32, torch.int32, device)), iter(_to_device(int64, torch.int64, device))

    def call(piece: Piece) -> Call:
        new_rows = next(rows)
        return Call(piece, *(next(numbers) for _ in range(4)), new_rows if new_rows.numel() else None)

    return tuple(tuple(call(piece) for piece in group) for group in groups)


def attend(
    tokens: Tokens,
    cache: Cache,
    sinks: torch.Tensor,
    out: torch.Tensor,
    groups: tuple[tuple[Call, ...], ...],
    *,
    sm_scale: float,
    window_left: int,
    scratch: torch.Tensor,
    attention: Attention,
) -> None:
    """Write the attention of the planned prefills to `out`, [tokens, query_heads, head_dim]. sinks: bf16."""
    options = {"sm_scale": sm_scale, "window_left": window_left}
    for calls in groups:
        first, count = calls[0].piece.first_token, calls[0].piece.tokens
        target = out[first : first + count]
        if len(calls) == 1:
            _run(attention, calls[0], tokens, cache, scratch, target, sinks=sinks, with_lse=False, **options)
            continue
        merged = Merge(target, sinks)
        for call in calls:
            part = torch.empty_like(target)
            merged.add(part, _run(attention, call, tokens, cache, scratch, part, sinks=None, with_lse=True, **options))
        merged.write(target)


class Merge:
    """Attention over several sets of keys, and the sink, merged by their LSE in fp32."""

    def __init__(self, like: torch.Tensor, sinks: torch.Tensor):
        self.out = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
        self.lse = sinks.float().expand(like.shape[:2]).clone()

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Add attention `out` [tokens, heads, head_dim] of log-sum-exp `lse` [heads, tokens]."""
        lse = lse.t()
        total = torch.logaddexp(self.lse, lse)
        self.out.mul_((self.lse - total).exp_()[..., None])
        self.out.addcmul_(out, (lse - total).exp_()[..., None])
        self.lse = total

    def write(self, target: torch.Tensor) -> None:
        target.copy_(self.out)


def reserve(query_heads: int, head_dim: int, tokens: int, device: torch.device) -> None:
    """Allocate and free what merging takes for that many query tokens, so that memory profiling counts it."""
    shape = (tokens, query_heads, head_dim)
    part = torch.empty(shape, dtype=torch.bfloat16, device=device)
    merged = Merge(part, torch.zeros(query_heads, dtype=torch.float32, device=device))
    merged.add(part, torch.zeros(query_heads, tokens, dtype=torch.float32, device=device))


def warm_up(cache: Cache, scratch: torch.Tensor) -> None:
    """Load the kernels that read the cache and write the scratch, with calls that read and write nothing."""
    rows, device = scratch[:, :SCRATCH_PAGE], scratch.device
    zero = torch.zeros(2, dtype=torch.int32, device=device)
    cache_read(
        *(cache.k, cache.v, cache.block_table[:1], zero[:1], zero, *rows),
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        layout="HND",
    )
    nowhere = torch.full((1,), -1, dtype=torch.int64, device=device)
    cache_write(rows[0], rows[1], *_pages(scratch), nowhere, layout="NHD")


def _run(attention, call, tokens, cache, scratch, out, *, sinks, with_lse, sm_scale, window_left):
    """Run one piece; returns what `attention` returns."""
    piece = call.piece
    new = slice(piece.first_token, piece.first_token + piece.tokens)
    keys, values = tokens.key[new], tokens.value[new]
    if piece.reads_cache:
        gathered = scratch[:, : sum(piece.key_lengths)]
        _gather(call, cache, gathered)
        if piece.causal:
            cache_write(keys, values, *_pages(scratch), call.new_rows, layout="NHD")
        keys, values = gathered
    return attention(
        tokens.query[new],
        keys,
        values,
        out,
        cu_queries=call.cu_queries,
        cu_keys=call.cu_keys,
        longest_query=max(piece.query_lengths),
        longest_key=max(piece.key_lengths),
        sm_scale=sm_scale,
        causal=piece.causal,
        window_left=window_left,
        sinks=sinks,
        with_lse=with_lse,
    )


def _gather(call, cache, gathered):
    piece = call.piece
    cache_read(
        cache.k,
        cache.v,
        cache.block_table[piece.first_row : piece.first_row + piece.rows],
        call.ends,
        call.cu_keys,
        *gathered,
        starts=call.starts,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        layout="HND",
    )


def _pages(scratch):
    """View K and V of the scratch as caches that `cache_write` takes: a row is a slot."""
    return scratch.unflatten(1, (-1, SCRATCH_PAGE))


def _to_device(parts, dtype, device):
    """Copy lists of numbers to the device as one tensor; return its parts."""
    flat = [number for part in parts for number in part]
    pinned = device.type == "cuda" and len(flat) > 0
    packed = torch.tensor(flat, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)
    return packed.split([len(part) for part in parts])
