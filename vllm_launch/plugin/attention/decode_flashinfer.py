"""Decode attention by FlashInfer's FA2 kernel with sinks, as our patches make it: decoder flashinfer.

A wrapper for each window, planned in each step from the host's lengths. It runs between the CUDA graphs of the rest:
a plan has no persistent addresses.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from flashinfer_patches.errors import Problem
from vllm_launch.plugin.attention.buffers import Geometry
from vllm_launch.plugin.attention.decode import Cache
from vllm_launch.plugin.attention.metadata import offsets

WORKSPACE_BYTES = 256 * 2**20
Wrapper = Any  # flashinfer.BatchDecodeWithPagedKVCacheWrapper


@functools.cache
def workspace(device: torch.device) -> torch.Tensor:
    """Return the process's scratch memory; every wrapper has it, since they run one after the other."""
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def make_wrapper(device: torch.device) -> Wrapper:
    """Make a wrapper. Raises Problem if FlashInfer lacks our patches."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    if "use_sinks" not in inspect.signature(BatchDecodeWithPagedKVCacheWrapper.plan).parameters:
        message = "decoder flashinfer: FlashInfer has no plan(use_sinks=True), which our patches add"
        raise Problem("software", message, "patch it: fp8-sinks patch apply; or take decoder lowp")
    return BatchDecodeWithPagedKVCacheWrapper(workspace(device), "HND", use_tensor_cores=True, backend="fa2")


def plan(
    wrapper: Wrapper,
    lengths: Sequence[int],
    block_table: torch.Tensor,
    geometry: Geometry,
    page: int,
    *,
    kv_dtype: torch.dtype,
    window_left: int,
    sm_scale: float,
) -> None:
    """Plan one query token of each request. lengths: tokens of each, on the host. block_table: their rows."""
    pages = [-(-length // page) for length in lengths]
    last_page = [length - (count - 1) * page for length, count in zip(lengths, pages, strict=True)]
    # Pinned: `plan` copies them to the device, and would wait for its steps otherwise.
    host = {"dtype": torch.int32, "pin_memory": block_table.device.type == "cuda"}
    wrapper.plan(
        torch.tensor(offsets(pages), **host),
        used_pages(pages, block_table),
        torch.tensor(last_page, **host),
        geometry.query_heads,
        geometry.kv_heads,
        geometry.head_dim,
        page,
        window_left=window_left,
        q_data_type=torch.bfloat16,
        kv_data_type=kv_dtype,
        sm_scale=sm_scale,
        use_sinks=True,
    )


def used_pages(pages: Sequence[int], block_table: torch.Tensor) -> torch.Tensor:
    """Return the first entries of each row of the block table, pages[i] of row i, without synchronising."""
    device, total = block_table.device, sum(pages)
    counts = torch.tensor(pages, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    rows = torch.repeat_interleave(counts, output_size=total)
    columns = torch.arange(total, device=device) - (counts.cumsum(0) - counts)[rows]
    return block_table[rows, columns]


def attend(
    wrapper: Wrapper,
    query: torch.Tensor,
    cache: Cache,
    sinks: torch.Tensor,
    out: torch.Tensor,
    rows: int,
    scales: tuple[float, float],
) -> None:
    """Write the attention of the planned requests to `out`. query, out: [rows or more, query_heads, head_dim]."""
    k_scale, v_scale = scales
    wrapper.run(query[:rows], (cache.k, cache.v), out=out[:rows], sinks=sinks, k_scale=k_scale, v_scale=v_scale)


def tensor_scale(scale: torch.Tensor | None) -> float:
    """Return a scale as the number that the kernel takes. Raises NotImplementedError if heads differ."""
    if scale is None:
        return 1.0
    distinct = scale.unique().tolist()
    if len(distinct) > 1:
        raise NotImplementedError("decoder flashinfer: scales of heads differ; expected one a tensor, or decoder lowp")
    return distinct[0]
