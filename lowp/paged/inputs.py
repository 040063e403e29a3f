"""Seeded inputs of one decode step of a model, for benches: many layers, as large as a GPU's memory allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lowp.formats import FORMATS, amax_scale, quantize
from lowp.paged.layouts import axes_of, k_and_v, tensor_sizes
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS, Shape
from lowp.paged.tables import block_table, sinks_near

KV_FORMATS = ("bf16", "e4m3")  # those without scales
REPEATED_PAGES = 4096  # of a large cache: drawn once and copied, which is as fast as memory is written

Pair = tuple[torch.Tensor, torch.Tensor]  # of keys and of values


@dataclass(frozen=True)
class Inputs:
    """The attention calls of a decode step, one a layer, which share block table and lengths as a model's layers do.

    q: for each layer [batch, query heads, head_dim], or [batch, query tokens, query heads, head_dim] for several, in
    the shape's query format. caches: by storage format, for each layer K and V, [pages, kv heads, page, head_dim] in
    that order of axes (HND), in memory in the shape's layout. scales: of a format that has them, for each layer those
    of K and V, fp32 [pages, kv heads, page].
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

    Every format holds the same values, rounded to it; int8 alone has scales, one for each token and head, and K and V
    apart whatever the layout.
    """
    random = torch.Generator(device).manual_seed(seed)
    table, pages = _table(shape, random)
    sizes = tensor_sizes(shape.layout, pages, PAGE_SIZE, KV_HEADS, shape.head_dim)
    values = [
        [torch.randn(size, generator=random, device=device, dtype=torch.bfloat16) for size in sizes]
        for _ in range(layers)
    ]
    caches, scales = {}, {}
    for kv_format in kv_formats:
        if kv_format == "int8":
            scaled = [_scaled(_in_hnd(tensors, shape)) for tensors in values]
            caches[kv_format], scales[kv_format] = (list(pairs) for pairs in zip(*scaled, strict=True))
        else:
            dtype = FORMATS[kv_format].dtype
            stored = [[x if x.dtype == dtype else quantize(x, kv_format).values for x in pair] for pair in values]
            caches[kv_format] = [_in_hnd(tensors, shape) for tensors in stored]
    return _inputs(shape, layers, caches, scales, table, random)


def large_cache(pages: int, kv_format: str, device: str = "cuda", seed: int = 0) -> torch.Tensor:
    """Make an interleaved HND cache of `pages` for `from_cache`: REPEATED_PAGES drawn from randn, over and over."""
    random = torch.Generator(device).manual_seed(seed)
    (size,) = tensor_sizes("interleaved", min(pages, REPEATED_PAGES), PAGE_SIZE, KV_HEADS, HEAD_DIM)
    drawn = quantize(torch.randn(size, generator=random, device=device), kv_format).values
    cache = drawn.new_empty(pages, *size[1:])
    for start in range(0, pages, len(drawn)):
        cache[start : start + len(drawn)] = drawn[: pages - start]
    return cache


def from_cache(shape: Shape, layers: int, caches: dict[str, torch.Tensor], seed: int = 0) -> Inputs:
    """Draw inputs whose layers are parts of large caches: each layer has pages of its own as far as they suffice.

    caches: by storage format, `large_cache` of equal pages, at least the shape's.
    """
    device = next(iter(caches.values())).device
    random = torch.Generator(device).manual_seed(seed)
    table, pages = _table(shape, random)

    def parts(cache: torch.Tensor) -> list[Pair]:
        distinct = len(cache) // pages
        starts = [layer % distinct * pages for layer in range(layers)]
        return [k_and_v([cache[start : start + pages]], shape.head_dim) for start in starts]

    return _inputs(shape, layers, {name: parts(cache) for name, cache in caches.items()}, {}, table, random)


def poison(inputs: Inputs) -> None:
    """Fill every out with NaN, so that what a call does not write shows."""
    for out in inputs.out:
        out.fill_(math.nan)


def _table(shape: Shape, random: torch.Generator) -> tuple[torch.Tensor, int]:
    width = -(-max(shape.table_tokens, shape.context) // PAGE_SIZE)
    return block_table(shape.page_spans, width, random)


def _in_hnd(tensors: list[torch.Tensor], shape: Shape) -> Pair:
    k, v = k_and_v(tensors, shape.head_dim)
    return (k.transpose(1, 2), v.transpose(1, 2)) if axes_of(shape.layout) == "NHD" else (k, v)


def _scaled(pair: Pair) -> tuple[Pair, Pair]:
    """K and V in int8, and their scales."""
    scales = [amax_scale(values, "int8", "token_head", "HND") for values in pair]
    stored = [quantize(values, "int8", scale).values for values, scale in zip(pair, scales, strict=True)]
    return tuple(stored), tuple(scale.squeeze(-1) for scale in scales)


def _inputs(shape, layers, caches, scales, table, random) -> Inputs:
    """The inputs around caches and their table."""
    tokens = (shape.query_tokens,) if shape.query_tokens > 1 else ()
    size, device = (layers, shape.batch, *tokens, QUERY_HEADS, shape.head_dim), random.device
    q = torch.randn(size, generator=random, device=device, dtype=FORMATS[shape.query_format].dtype)
    read = min(shape.context, shape.window_left + 1) if shape.window_left >= 0 else shape.context
    return Inputs(
        shape=shape,
        q=list(q),
        caches=caches,
        out=list(torch.empty_like(q)),
        block_table=table,
        seq_lens=torch.tensor(shape.lengths, dtype=torch.int32, device=device),
        sinks=sinks_near(read, QUERY_HEADS, random).bfloat16().float(),
        sm_scale=shape.head_dim**-0.5,
        scales=scales,
    )
