"""Layouts of a paged KV cache in memory, and the order of its axes.

NHD: [pages, page_size, kv_heads, head_dim], HND: [pages, kv_heads, page_size, head_dim], K and V apart. interleaved:
HND, and NHD interleaved: NHD, with K and V of a token in one line, [..., 2 * head_dim].

An interleaved int8 cache with scales per token and head has them in the same pages, behind the lines: fp32
[2, kv_heads, page_size], those of K, then those of V.
"""

import math

import torch

AXES = ("NHD", "HND")


def axes_of(layout: str) -> str:
    """Return the order of a layout's axes, NHD or HND."""
    return "NHD" if "NHD" in layout else "HND"


def page_and_head_axis(axes: str) -> tuple[int, int]:
    """Return the axes of a page's slots and of the KV heads."""
    return (1, 2) if axes == "NHD" else (2, 1)


def tensor_sizes(layout: str, pages: int, page_size: int, kv_heads: int, head_dim: int) -> list[tuple[int, ...]]:
    """Return the shapes of a cache's tensors in memory: of K and of V, or of one that holds both."""
    middle = (page_size, kv_heads) if axes_of(layout) == "NHD" else (kv_heads, page_size)
    if "interleaved" in layout:
        return [(pages, *middle, 2 * head_dim)]
    return [(pages, *middle, head_dim)] * 2


def k_and_v(tensors: list[torch.Tensor], head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V as views of a cache's tensors."""
    k, v = (half for tensor in tensors for half in tensor.split(head_dim, dim=-1))
    return k, v


def join_scales(lines: torch.Tensor, k_scale: torch.Tensor, v_scale: torch.Tensor) -> torch.Tensor:
    """Return pages as bytes: int8 lines [pages, kv_heads, page_size, 2 * head_dim], then scales without head_dim."""
    scales = torch.stack((k_scale, v_scale), 1)
    return torch.cat([part.flatten(1).view(torch.uint8) for part in (lines, scales)], 1)


def split_scales(
    pages: torch.Tensor, page_size: int, kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return K, V and their scales as views of pages that `join_scales` made, [pages, bytes], which may be strided."""
    size = kv_heads, page_size, 2 * head_dim
    lines, scales = pages[:, : math.prod(size)], pages[:, math.prod(size) :]
    k, v = lines.view(torch.int8).unflatten(1, size).split(head_dim, dim=-1)
    k_scale, v_scale = scales.view(torch.float32).unflatten(1, (2, kv_heads, page_size)).unbind(1)
    return k, v, k_scale, v_scale


def in_nhd(tensor: torch.Tensor, axes: str) -> torch.Tensor:
    """View a cache, or its scales per token and head, with a page's slots before the KV heads."""
    return tensor if axes == "NHD" else tensor.transpose(1, 2)


def as_bits(cache: torch.Tensor) -> torch.Tensor:
    """View values as integers of their size: indexing is not implemented for float8 on every device."""
    return cache.view(torch.uint8 if cache.dtype.itemsize == 1 else torch.int16)


def gather(
    cache: torch.Tensor, scale: torch.Tensor | None, page: torch.Tensor, slot: torch.Tensor, axes: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the stored vectors of tokens, [tokens, kv_heads, head_dim], and their scale, which broadcasts to them.

    scale: of any granularity, as `sink_decode` takes it.
    """
    stored = as_bits(in_nhd(cache, axes))[page, slot].view(cache.dtype)
    if scale is None or scale.numel() == 1:
        return stored, None if scale is None else scale.view(())
    if scale.dim() == 2:
        return stored, scale
    return stored, (in_nhd(scale, axes)[page, slot] if scale.dim() == 3 else scale)[..., None]
