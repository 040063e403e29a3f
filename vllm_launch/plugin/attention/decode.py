"""Decode attention of the first requests of a batch by `lowp.sink_decode`."""

from typing import NamedTuple

import torch

from lowp import sink_decode
from vllm_launch.plugin.attention.metadata import Decodes, pad_queries

MOST_QUERY_TOKENS = 4


class PaddedQueries(NamedTuple):
    """Device indices for rows of different query lengths: see `metadata.pad_queries`."""

    sources: torch.Tensor
    targets: torch.Tensor


class Cache(NamedTuple):
    """A layer's paged cache: K and V as views [pages, kv_heads, page, head_dim], their scales, tables and lengths."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    block_table: torch.Tensor
    seq_lens: torch.Tensor


def upload_padding(decodes: Decodes | None, device: torch.device) -> PaddedQueries | None:
    """Copy the indices that rows of different query lengths need to the device; None if all have the same."""
    if decodes is None or decodes.lengths is None:
        return None
    sources, targets = pad_queries(decodes.lengths)
    indices = torch.tensor(sources + targets, dtype=torch.int64, pin_memory=device.type == "cuda")
    return PaddedQueries(*indices.to(device, non_blocking=True).split([len(sources), len(targets)]))


def attend(
    query: torch.Tensor,
    cache: Cache,
    sinks: torch.Tensor,
    out: torch.Tensor,
    decodes: Decodes,
    padded: PaddedQueries | None,
    *,
    sm_scale: float,
    window_left: int,
    workspace: torch.Tensor,
) -> None:
    """Write the attention of the first requests to `out`. query, out: [tokens or more, query_heads, head_dim].

    Lengths and tables are read on the device: with rows of equal query lengths the call can be captured in a graph.
    """
    rows, query_tokens, tokens = decodes.rows, decodes.query_tokens, decodes.tokens
    if padded is not None:
        q = query.index_select(0, padded.sources)
        target = torch.empty_like(q)
    else:
        q, target = query[:tokens], out[:tokens]
    if query_tokens > 1:
        q, target = (x.unflatten(0, (rows, query_tokens)) for x in (q, target))
    # overlap: as sink_decode chooses. The kernel before it is our cache writer, which lets it start early.
    sink_decode.sink_decode(
        q,
        cache.k,
        cache.v,
        cache.block_table[:rows],
        cache.seq_lens[:rows],
        sinks,
        sm_scale=sm_scale,
        window_left=window_left,
        k_scale=cache.k_scale,
        v_scale=cache.v_scale,
        layout="HND",
        out=target,
        workspace=workspace,
    )
    if padded is not None:
        torch.index_select(target.flatten(0, 1), 0, padded.targets, out=out[:tokens])


def prebuild(
    batches: int,
    query_tokens: int,
    query_heads: int,
    cache: Cache,
    *,
    window_left: int,
) -> int:
    """Compile and load every kernel for up to `batches` requests of 1 to `query_tokens` query tokens; return how many.

    cache: of the layer's formats, page and table width; its contents are not read.
    """
    kernels = 0
    for tokens in range(1, query_tokens + 1):
        shape = (1, *((tokens,) if tokens > 1 else ()), query_heads, cache.k.shape[-1])
        kernels += sink_decode.prebuild(
            range(1, batches + 1),
            q=torch.empty(shape, dtype=torch.bfloat16, device=cache.k.device),
            k_cache=cache.k,
            v_cache=cache.v,
            block_table=cache.block_table,
            seq_lens=cache.seq_lens,
            sinks=torch.empty(query_heads, dtype=torch.float32, device=cache.k.device),
            sm_scale=1.0,
            window_left=window_left,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
            layout="HND",
        )
    return kernels
