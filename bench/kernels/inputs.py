"""Seeded inputs that every kernel of a run is measured on."""

import math
from dataclasses import dataclass

import torch

from bench.kernels.grid import FORMAT_BYTES, GEOMETRY
from bench.kernels.shape import Shape
from lowp.formats import quantize


@dataclass(frozen=True)
class Inputs:
    """One decode step's attention calls, one a layer, which share block table and lengths as a model's layers do.

    q: for each layer [batch, query heads, head_dim], bf16. caches: by storage format, for each layer K and V,
    [pages, kv heads, page, head_dim] in that order of axes (HND), in memory in the shape's layout; every format holds
    the same values, rounded to it, without scales.
    out: for each layer, like q, for a call to write. block_table: [batch, pages of the widest row] int32, pages in
    random order; beyond a row's length, and before its window, page 0, as where vLLM has given a page back.
    seq_lens: [batch] int32. sinks: [query heads] fp32, natural log units, near the rows' log-sum-exp, so that a sink
    that is dropped or shifted shows in the error; values that BF16 holds, which is what some kernels take.
    """

    shape: Shape
    q: list[torch.Tensor]
    caches: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]
    out: list[torch.Tensor]
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    sinks: torch.Tensor
    sm_scale: float


def build(shape: Shape, layers: int, device: str = "cuda", seed: int = 0) -> Inputs:
    """The same inputs for the same arguments and kind of device; randn values. lengths: any numbers of tokens."""
    random = torch.Generator(device).manual_seed(seed)
    table, pages = _table(shape, random, device)

    def randn(*size) -> torch.Tensor:
        return torch.randn(size, generator=random, device=device, dtype=torch.bfloat16)

    def cache(memory: list[torch.Tensor], kv_format: str) -> tuple[torch.Tensor, torch.Tensor]:
        stored = memory if kv_format == "bf16" else [quantize(values, kv_format).values for values in memory]
        if shape.layout == "interleaved":
            return stored[0].split(shape.head_dim, dim=-1)
        return tuple(values.transpose(1, 2) if shape.layout == "NHD" else values for values in stored)

    sizes = _sizes(shape, pages)
    exact = [[randn(*size) for size in sizes] for _ in range(layers)]
    q = [randn(shape.batch, GEOMETRY.query_heads, shape.head_dim) for _ in range(layers)]
    # randn queries and keys give logits of about N(0, 1): their log-sum-exp is about log(tokens read) + 1/2.
    middle = math.log(min(shape.context, shape.window_left + 1) if shape.window_left >= 0 else shape.context) + 0.5
    spread = 4 * torch.rand(GEOMETRY.query_heads, generator=random, device=device) - 2
    return Inputs(
        shape=shape,
        q=q,
        caches={name: [cache(memory, name) for memory in exact] for name in FORMAT_BYTES},
        out=[torch.empty_like(one) for one in q],
        block_table=table,
        seq_lens=torch.tensor(shape.lengths, dtype=torch.int32, device=device),
        sinks=(middle + spread).bfloat16().float(),
        sm_scale=shape.head_dim**-0.5,
    )


def first_token(shape: Shape, row: int) -> int:
    """The first token of a request that is read."""
    return max(0, shape.lengths[row] - 1 - shape.window_left) if shape.window_left >= 0 else 0


def pages_of(shape: Shape, row: int) -> int:
    """Pages that a request's length spans."""
    return -(-shape.lengths[row] // GEOMETRY.page_size)


def _sizes(shape: Shape, pages: int) -> list[tuple[int, ...]]:
    """Of a cache's tensors, in the order of memory: keys and values, or one that holds both."""
    heads, page = GEOMETRY.kv_heads, GEOMETRY.page_size
    if shape.layout == "interleaved":
        return [(pages, heads, page, 2 * shape.head_dim)]
    return [(pages, page, heads, shape.head_dim) if shape.layout == "NHD" else (pages, heads, page, shape.head_dim)] * 2


def _table(shape: Shape, random: torch.Generator, device: str) -> tuple[torch.Tensor, int]:
    """The block table, and how many pages the caches have: those alone that are read."""
    spans = [(first_token(shape, row) // GEOMETRY.page_size, pages_of(shape, row)) for row in range(shape.batch)]
    counts = [end - begin for begin, end in spans]
    order = torch.randperm(sum(counts), generator=random, device=device).int()
    width = max(-(-shape.table_tokens // GEOMETRY.page_size), *(end for _, end in spans))
    table = torch.zeros(shape.batch, width, dtype=torch.int32, device=device)
    for row, (part, (begin, end)) in enumerate(zip(order.split(counts), spans, strict=True)):
        table[row, begin:end] = part
    return table, sum(counts)


def poison(inputs: Inputs) -> None:
    """Fill every out with NaN: what a call does not write shows."""
    for out in inputs.out:
        out.fill_(math.nan)
