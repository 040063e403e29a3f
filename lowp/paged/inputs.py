"""Seeded inputs of one decode step of a model, for benches: many layers, as large as a GPU's memory allows."""

import math
from dataclasses import dataclass

import torch

from lowp.formats import quantize
from lowp.paged.layouts import axes_of, k_and_v, tensor_sizes
from lowp.paged.shapes import KV_HEADS, PAGE_SIZE, QUERY_HEADS, Shape
from lowp.paged.tables import block_table, sinks_near

KV_FORMATS = ("bf16", "e4m3")


@dataclass(frozen=True)
class Inputs:
    """The attention calls of a decode step, one a layer, which share block table and lengths as a model's layers do.

    q: for each layer [batch, query heads, head_dim], bf16. caches: by storage format, for each layer K and V,
    [pages, kv heads, page, head_dim] in that order of axes (HND), in memory in the shape's layout; every format holds
    the same values, rounded to it, without scales.
    out: for each layer, like q, for a call to write. block_table: [batch, pages of the widest row] int32, pages in
    random order; beyond a row's length, and before its window, page 0, as where vLLM has given a page back.
    seq_lens: [batch] int32. sinks: [query heads] fp32, natural log units, near the rows' log-sum-exp; values that BF16
    holds, which is what some kernels take.
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
    """Draw inputs from randn: the same for the same arguments and kind of device. The caches hold read pages alone."""
    random = torch.Generator(device).manual_seed(seed)
    spans = [(shape.first_token(row) // PAGE_SIZE, -(-n // PAGE_SIZE)) for row, n in enumerate(shape.lengths)]
    width = -(-max(shape.table_tokens, shape.context) // PAGE_SIZE)
    table, pages = block_table(spans, width, random)

    def randn(*size) -> torch.Tensor:
        return torch.randn(size, generator=random, device=device, dtype=torch.bfloat16)

    def cache(tensors: list[torch.Tensor], kv_format: str) -> tuple[torch.Tensor, torch.Tensor]:
        stored = tensors if kv_format == "bf16" else [quantize(values, kv_format).values for values in tensors]
        k, v = k_and_v(stored, shape.head_dim)
        return (k.transpose(1, 2), v.transpose(1, 2)) if axes_of(shape.layout) == "NHD" else (k, v)

    sizes = tensor_sizes(shape.layout, pages, PAGE_SIZE, KV_HEADS, shape.head_dim)
    values = [[randn(*size) for size in sizes] for _ in range(layers)]
    q = [randn(shape.batch, QUERY_HEADS, shape.head_dim) for _ in range(layers)]
    read = min(shape.context, shape.window_left + 1) if shape.window_left >= 0 else shape.context
    return Inputs(
        shape=shape,
        q=q,
        caches={name: [cache(tensors, name) for tensors in values] for name in KV_FORMATS},
        out=[torch.empty_like(queries) for queries in q],
        block_table=table,
        seq_lens=torch.tensor(shape.lengths, dtype=torch.int32, device=device),
        sinks=sinks_near(read, QUERY_HEADS, random).bfloat16().float(),
        sm_scale=shape.head_dim**-0.5,
    )


def poison(inputs: Inputs) -> None:
    """Fill every out with NaN, so that what a call does not write shows."""
    for out in inputs.out:
        out.fill_(math.nan)
