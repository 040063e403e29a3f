"""Seeded inputs of one decode call, for tests: every format, scale granularity and layout, with poison around them."""

import math
from dataclasses import dataclass

import torch

from lowp.formats import FORMATS
from lowp.paged.layouts import as_bits, axes_of, in_nhd, k_and_v, tensor_sizes
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS
from lowp.paged.tables import block_table, sinks_near

POISON_PAGE = 2**30  # a block table entry that must never be followed
CHUNK = 2**26  # values drawn at a time
INT8_UNIT = 40  # the int8 value that stands for 1 before the scales


@dataclass(frozen=True)
class Case:
    """The choices of one call.

    granularity: of the scales: none, tensor, head, token_head or channel; v_granularity: V's, where it differs.
    layout: NHD, HND, interleaved or NHD interleaved, as `layouts` has them.
    sinks: "near" each row's log-sum-exp, or a number for all heads. q_factor: multiplies q.
    query_tokens: of a sequence; with one, q has no axis for them.
    growth: nats by which the scores grow from a row's first token to the longest row's last; not for int8.
    poison: NaN (int8: -128) in every slot and page that no sequence uses, NaN in the scales of each such token, and
        entries out of range where the table is unused.
    table_tokens: tokens that the table has room for, 0 for as many as the longest sequence has.
    """

    lengths: tuple[int, ...]
    query_heads: int = QUERY_HEADS
    kv_heads: int = KV_HEADS
    head_dim: int = HEAD_DIM
    page_size: int = PAGE_SIZE
    kv_format: str = "e4m3"
    query: str = "bf16"
    granularity: str = "none"
    v_granularity: str | None = None
    layout: str = "HND"
    window_left: int = -1
    sinks: str | float = "near"
    q_factor: float = 1.0
    query_tokens: int = 1
    growth: float = 0.0
    poison: bool = True
    table_tokens: int = 0
    seed: int = 0

    @property
    def axes(self) -> str:
        """NHD or HND: the layout that a call is given."""
        return axes_of(self.layout)


def build(case: Case, device: str = "cpu") -> dict:
    """Draw the arguments of `sink_decode` and of `reference`: the same for the same case and kind of device."""
    random = torch.Generator(device).manual_seed(case.seed)
    seq_lens = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    spans = [(0, math.ceil(length / case.page_size)) for length in case.lengths]
    width = max(1, math.ceil(max(*case.lengths, case.table_tokens, 1) / case.page_size))
    unused, spare_pages = (POISON_PAGE, 3) if case.poison else (0, 1)
    table, pages = block_table(spans, width, random, spare_pages=spare_pages, unused=unused)
    k_cache, v_cache = _caches(case, pages, random)
    position = _positions(case, pages, table, spans)
    sm_scale = case.head_dim**-0.5
    if case.growth:
        rising = position.clamp(min=0) * (case.growth / (4 * sm_scale * max(case.lengths)))
        in_nhd(k_cache, case.axes)[..., 0] = rising.clamp(max=440).to(k_cache.dtype)[..., None]
    if case.poison:
        for cache in (k_cache, v_cache):
            worst = -128 if cache.dtype == torch.int8 else math.nan
            poison = torch.full((case.head_dim,), worst, device=device).to(cache.dtype)
            as_bits(in_nhd(cache, case.axes))[position < 0] = as_bits(poison)
    tokens = () if case.query_tokens == 1 else (case.query_tokens,)
    q = torch.randn(len(case.lengths), *tokens, case.query_heads, case.head_dim, generator=random, device=device)
    if case.growth:
        q[..., 0] = 4
    v_granularity = case.v_granularity or case.granularity
    return {
        "q": (q * case.q_factor).to(FORMATS[case.query].dtype),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": table,
        "seq_lens": seq_lens,
        "sm_scale": sm_scale,
        "window_left": case.window_left,
        "k_scale": _scale(case, case.granularity, position, lambda x: 0.5 + x, random),
        "v_scale": _scale(case, v_granularity, position, lambda x: torch.exp2(6 * x - 4), random),
        "sinks": _sinks(case, random),
        "layout": case.axes,
    }


def _caches(case, pages, random):
    """Draw K and V in chunks: the values of a large cache in fp32 would not fit beside it."""
    dtype = FORMATS[case.kv_format].dtype
    tensors = []
    for size in tensor_sizes(case.layout, pages, case.page_size, case.kv_heads, case.head_dim):
        cache = torch.empty(size, dtype=dtype, device=random.device)
        step = max(1, CHUNK // cache[0].numel())
        for start in range(0, pages, step):
            chunk = cache[start : start + step]
            values = torch.randn(chunk.shape, generator=random, device=random.device)
            chunk.copy_(values if dtype != torch.int8 else (values * INT8_UNIT).round().clamp(-127, 127))
        tensors.append(cache)
    return k_and_v(tensors, case.head_dim)


def _positions(case, pages, table, spans):
    """The position in its sequence that each slot holds, -1 for none: [pages, page_size]."""
    position = torch.full((pages, case.page_size), -1, dtype=torch.int64, device=table.device)
    for row, (length, (_, end)) in enumerate(zip(case.lengths, spans, strict=True)):
        tokens = torch.arange(end * case.page_size, device=table.device)
        position[table[row, :end].long()] = torch.where(tokens < length, tokens, -1).view(end, case.page_size)
    return position


def _scale(case, granularity, position, spread, random):
    if granularity == "none":
        return None
    shapes = {
        "tensor": (1,),
        "head": (case.kv_heads,),
        "channel": (case.kv_heads, case.head_dim),
        "token_head": (*position.shape, case.kv_heads),
    }
    unit = INT8_UNIT if case.kv_format == "int8" else 1
    scale = spread(torch.rand(shapes[granularity], generator=random, device=random.device)) / unit
    if granularity != "token_head":
        return scale
    scale[position < 0] = math.nan if case.poison else 1.0
    return in_nhd(scale, case.axes)


def _sinks(case, random):
    if case.sinks != "near":
        return torch.full((case.query_heads,), float(case.sinks), device=random.device)
    read = max(case.lengths) if case.window_left < 0 else min(case.window_left + 1, max(case.lengths))
    return sinks_near(max(1, read), case.query_heads, random)
