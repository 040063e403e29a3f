"""Tensors of tests that look at every byte: views of poisoned memory, copied and compared with what is around them."""

from collections.abc import Callable

import torch

from lowp.formats import FORMATS
from lowp.paged.layouts import k_and_v, tensor_sizes
from lowp.paged.memory import poisoned

LAYOUTS = ("NHD", "HND", "interleaved", "NHD interleaved", "HND, K and V in a page")


def caches(
    layout: str, kv_format: str, pages: int, page_size: int, kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make K and V as views of poisoned memory, in one of LAYOUTS."""
    dtype = FORMATS[kv_format].dtype
    if layout == LAYOUTS[-1]:
        k, v = poisoned((pages, 2, kv_heads, page_size, head_dim), dtype).unbind(1)
        return k, v
    sizes = tensor_sizes(layout, pages, page_size, kv_heads, head_dim)
    return k_and_v([poisoned(size, dtype) for size in sizes], head_dim)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the last two axes exchanged in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def replaced(tensor: torch.Tensor, index: int | tuple[int, ...], value: int) -> torch.Tensor:
    """A copy with one other entry."""
    changed = tensor.clone()
    changed[index] = value
    return changed


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Run a call, which loads its kernel, and capture it in a CUDA graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
