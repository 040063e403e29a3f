"""Seeded inputs that every kernel of a run is measured on."""

import math
from dataclasses import dataclass

import torch

from bench.kernels.grid import GEOMETRY, Shape

DTYPES = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Inputs:
    """One decode step's attention calls, one a layer, which share block table and lengths as a model's layers do.

    q: for each layer [batch, query heads, head_dim], bf16. caches: by storage format, for each layer K and V,
    [pages, kv heads, page, head_dim] (HND); every format holds the same values, rounded to it, without scales.
    out: for each layer, like q, for a call to write. block_table: [batch, pages a request] int32, pages in random
    order. seq_lens: [batch] int32. sinks: [query heads] fp32, natural log units, near the rows' log-sum-exp, so that
    a sink that is dropped or shifted shows in the error.
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
    """The same inputs for the same arguments and kind of device; randn values. context: any number of tokens."""
    random = torch.Generator(device).manual_seed(seed)
    pages = -(-shape.context // GEOMETRY.page_size)
    table = torch.randperm(shape.batch * pages, generator=random, device=device).int().view(shape.batch, pages)
    size = (shape.batch * pages, GEOMETRY.kv_heads, GEOMETRY.page_size, GEOMETRY.head_dim)

    def randn(*size) -> torch.Tensor:
        return torch.randn(size, generator=random, device=device, dtype=torch.bfloat16)

    def stored(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return values if dtype == values.dtype else values.clamp(-E4M3_MAX, E4M3_MAX).to(dtype)

    exact = [(randn(*size), randn(*size)) for _ in range(layers)]
    q = [randn(shape.batch, GEOMETRY.query_heads, GEOMETRY.head_dim) for _ in range(layers)]
    # randn queries and keys give logits of about N(0, 1): their log-sum-exp is about log(context) + 1/2.
    spread = 4 * torch.rand(GEOMETRY.query_heads, generator=random, device=device) - 2
    return Inputs(
        shape=shape,
        q=q,
        caches={name: [(stored(k, dtype), stored(v, dtype)) for k, v in exact] for name, dtype in DTYPES.items()},
        out=[torch.empty_like(one) for one in q],
        block_table=table,
        seq_lens=torch.full((shape.batch,), shape.context, dtype=torch.int32, device=device),
        sinks=math.log(shape.context) + 0.5 + spread,
        sm_scale=GEOMETRY.head_dim**-0.5,
    )


def poison(inputs: Inputs) -> None:
    """Fill every out with NaN: what a call does not write shows."""
    for out in inputs.out:
        out.fill_(math.nan)
