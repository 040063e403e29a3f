"""Seeded inputs of one decode step of a model, for benches: many layers, as large as a GPU's memory allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lowp.formats import FORMATS, amax_scale, quantize
from lowp.paged.layouts import axes_of, join_scales, k_and_v, split_scales, tensor_sizes
from lowp.paged.shapes import CACHES, HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS, Shape
from lowp.paged.tables import block_table, sinks_near

KV_FORMATS = ("bf16", "e4m3")  # those without scales
REPEATED_PAGES = 4096  # of a large cache: drawn once and copied, which is as fast as memory is written

Pair = tuple[torch.Tensor, torch.Tensor]  # of keys and of values


class Stored(NamedTuple):
    """K and V as they lie in memory. tensors: each with pages first, of K and of V, or of both interleaved; uint8:
    pages of `layouts.join_scales`. scales: of K and V, if the pages do not hold them.
    """

    tensors: list[torch.Tensor]
    scales: Pair | None = None


@dataclass(frozen=True)
class Inputs:
    """The attention calls of a decode step, one a layer, which share block table and lengths as a model's layers do.

    q: for each layer [batch, query heads, head_dim], or [batch, query tokens, query heads, head_dim] for several, in
    the shape's query format. caches: by kv_format, for each layer K and V, [pages, kv heads, page, head_dim] in that
    order of axes (HND), in memory in the shape's layout. scales: of a kv_format that has them, for each layer those of
    K and V, fp32: per token and head [pages, kv heads, page], per channel [kv heads, head_dim], per head [kv heads].
    out: for each layer, like q, for a call to write. block_table: [batch, pages of the widest row] int32, pages in
    random order; beyond a row's length, and before its window, page 0, as where vLLM has given a page back.
    seq_lens: [batch] int32. sinks: [query heads] fp32, natural log units, near the rows' log-sum-exp; values that BF16
    holds, which is what some kernels take.
    """

    shape: Shape
    q: list[torch.Tensor]
    caches: dict[str, list[Pair]]
    out: list[torch.Tensor]
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    sinks: torch.Tensor
    sm_scale: float
    scales: dict[str, list[Pair]] = field(default_factory=dict)

    def layer_scales(self, kv_format: str, layer: int) -> dict[str, torch.Tensor]:
        """The keyword arguments k_scale and v_scale of a layer's call; none of a format without scales."""
        if kv_format not in self.scales:
            return {}
        return dict(zip(("k_scale", "v_scale"), self.scales[kv_format][layer], strict=True))


def build(
    shape: Shape, layers: int, kv_formats: Sequence[str] = KV_FORMATS, device: str = "cuda", seed: int = 0
) -> Inputs:
    """Draw inputs from randn: the same for the same arguments and kind of device. The caches hold read pages alone.

    Every format holds the same values, rounded to it; scales are those of the largest magnitude in the layer.
    """
    random = torch.Generator(device).manual_seed(seed)
    table, pages = _table(shape, random)
    sizes = tensor_sizes(shape.layout, pages, PAGE_SIZE, KV_HEADS, shape.head_dim)
    values = [
        [torch.randn(size, generator=random, device=device, dtype=torch.bfloat16) for size in sizes]
        for _ in range(layers)
    ]
    stored = {name: [_store(tensors, name, shape.layout, shape.head_dim) for tensors in values] for name in kv_formats}
    return _inputs(shape, layers, stored, table, random)


def large_cache(pages: int, kv_format: str, device: str = "cuda", seed: int = 0) -> Stored:
    """Make an interleaved HND cache of `pages` for `from_cache`: REPEATED_PAGES drawn from randn, over and over."""
    random = torch.Generator(device).manual_seed(seed)
    (size,) = tensor_sizes("interleaved", min(pages, REPEATED_PAGES), PAGE_SIZE, KV_HEADS, HEAD_DIM)
    stored = _store([torch.randn(size, generator=random, device=device)], kv_format, "interleaved", HEAD_DIM)
    (drawn,) = stored.tensors
    cache = drawn.new_empty(pages, *drawn.shape[1:])
    for start in range(0, pages, len(drawn)):
        cache[start : start + len(drawn)] = drawn[: pages - start]
    return stored._replace(tensors=[cache])


def from_cache(shape: Shape, layers: int, caches: dict[str, Stored], seed: int = 0) -> Inputs:
    """Draw inputs whose layers are parts of large caches: each layer has pages of its own as far as they suffice.

    caches: by kv_format, `large_cache` of equal pages, at least the shape's. In a layout that is not interleaved, K and
    V are the halves of a layer's part.
    """
    device = next(iter(caches.values())).tensors[0].device
    random = torch.Generator(device).manual_seed(seed)
    table, pages = _table(shape, random)
    sizes = tensor_sizes(shape.layout, pages, PAGE_SIZE, KV_HEADS, shape.head_dim)

    def parts(cache: Stored) -> list[Stored]:
        (memory,) = cache.tensors
        distinct = len(memory) // pages
        starts = [layer % distinct * pages for layer in range(layers)]
        tensors = [memory[start : start + pages] for start in starts]
        return [cache._replace(tensors=[x] if len(sizes) == 1 else list(x.view(2, *sizes[0]))) for x in tensors]

    return _inputs(shape, layers, {name: parts(cache) for name, cache in caches.items()}, table, random)


def poison(inputs: Inputs) -> None:
    """Fill every out with NaN, so that what a call does not write shows."""
    for out in inputs.out:
        out.fill_(math.nan)


def _table(shape: Shape, random: torch.Generator) -> tuple[torch.Tensor, int]:
    width = -(-max(shape.table_tokens, shape.context) // PAGE_SIZE)
    return block_table(shape.page_spans, width, random)


def _store(tensors: list[torch.Tensor], kv_format: str, layout: str, head_dim: int) -> Stored:
    """Round K and V, which lie in the layout, to a kv_format."""
    cache = CACHES[kv_format]
    if cache.k_scale == "none":
        dtype = FORMATS[cache.values].dtype
        return Stored([x if x.dtype == dtype else quantize(x, cache.values).values for x in tensors])
    granularities, pair = (cache.k_scale, cache.v_scale), k_and_v(tensors, head_dim)
    scales = [amax_scale(x, cache.values, name, axes_of(layout)) for x, name in zip(pair, granularities, strict=True)]
    stored = [quantize(x, cache.values, scale).values for x, scale in zip(pair, scales, strict=True)]
    shapes = {"token_head": pair[0].shape[:-1], "channel": (KV_HEADS, head_dim), "head": (KV_HEADS,)}
    scales = tuple(scale.reshape(shapes[name]) for scale, name in zip(scales, granularities, strict=True))
    if layout != "interleaved":
        return Stored(stored, scales)
    lines = torch.cat(stored, -1)
    return Stored([join_scales(lines, *scales)]) if cache.k_scale == "token_head" else Stored([lines], scales)


def _views(stored: Stored, layout: str, head_dim: int) -> tuple[Pair, Pair | None]:
    """K and V in the order HND, and their scales."""
    if stored.tensors[0].dtype == torch.uint8:
        k, v, *scales = split_scales(stored.tensors[0], PAGE_SIZE, KV_HEADS, head_dim)
        return (k, v), tuple(scales)
    k, v = k_and_v(stored.tensors, head_dim)
    return (_hnd(k, layout), _hnd(v, layout)), stored.scales and tuple(_hnd(x, layout) for x in stored.scales)


def _hnd(x: torch.Tensor, layout: str) -> torch.Tensor:
    """A cache, or its scales per token and head, in the order HND; other scales as they are."""
    return x.transpose(1, 2) if axes_of(layout) == "NHD" and x.dim() > 2 else x


def _inputs(shape: Shape, layers: int, stored: dict[str, list[Stored]], table, random) -> Inputs:
    """The inputs around caches and their table."""
    tokens = (shape.query_tokens,) if shape.query_tokens > 1 else ()
    size, device = (layers, shape.batch, *tokens, QUERY_HEADS, shape.head_dim), random.device
    q = torch.randn(size, generator=random, device=device, dtype=FORMATS[shape.query_format].dtype)
    read = min(shape.context, shape.window_left + 1) if shape.window_left >= 0 else shape.context
    views = {name: [_views(layer, shape.layout, shape.head_dim) for layer in stored[name]] for name in stored}
    return Inputs(
        shape=shape,
        q=list(q),
        caches={name: [pair for pair, _ in views[name]] for name in views},
        out=list(torch.empty_like(q)),
        block_table=table,
        seq_lens=torch.tensor(shape.lengths, dtype=torch.int32, device=device),
        sinks=sinks_near(read, QUERY_HEADS, random).bfloat16().float(),
        sm_scale=shape.head_dim**-0.5,
        scales={name: [scales for _, scales in views[name]] for name in views if CACHES[name].k_scale != "none"},
    )
