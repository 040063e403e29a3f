"""Seeded inputs of one decode call, for the tests; the bench has its own: many layers that share a block table."""

import math
from dataclasses import dataclass

import torch

from lowp.formats import FORMATS

POISON_PAGE = 2**30  # a block table entry that must never be followed
CHUNK = 2**26  # values made at once
INT8_UNIT = 40  # what stands for 1 in an int8 cache, before its scales


@dataclass(frozen=True)
class Case:
    """What to build.

    granularity: of the scales: none, tensor, head, token_head or channel; v_granularity: V's, where it is another.
    layout: NHD, HND, interleaved (HND views of one [pages, kv_heads, page_size, 2 * head_dim]), or NHD interleaved
        (the same with page_size before kv_heads).
    sinks: "near" each row's log-sum-exp, or a number for all heads. q_factor: multiplies q.
    query_tokens: a sequence; of one, q has no axis.
    growth: nats by which the scores grow from a row's first token to the longest row's last; not for int8.
    poison: NaN (int8: -128) in every slot and page that no sequence uses, NaN in the scales of each such token, and
        entries out of range where the table is unused.
    """

    lengths: tuple[int, ...]
    query_heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    page_size: int = 16
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
    max_length: int = 0
    seed: int = 0

    @property
    def axes(self) -> str:
        """NHD or HND: the layout that a call is told."""
        return "NHD" if "NHD" in self.layout else "HND"


def build(case: Case, device: str = "cpu") -> dict:
    """The arguments of `sink_decode` for a case: the same for the same case and kind of device.

    The table is as wide as the longest row, or case.max_length if that is more; pages are in random order.
    """
    random = torch.Generator(device).manual_seed(case.seed)
    seq_lens = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    used = (seq_lens + case.page_size - 1) // case.page_size
    width = max(1, math.ceil(max(*case.lengths, case.max_length, 1) / case.page_size))
    pages = int(used.sum()) + (3 if case.poison else 1)
    block_table = torch.full((len(case.lengths), width), POISON_PAGE if case.poison else 0, device=device).int()
    in_use = torch.arange(width, device=device) < used[:, None]
    block_table[in_use] = torch.randperm(pages, generator=random, device=device)[: int(used.sum())].int()
    k_cache, v_cache = _caches(case, pages, random, device)
    position = _positions(case, pages, block_table, in_use, seq_lens)
    if case.growth:
        dtype, sm_scale = k_cache.dtype, case.head_dim**-0.5
        rising = position.clamp(min=0) * (case.growth / (4 * sm_scale * max(case.lengths)))
        _slots(case, k_cache)[..., 0] = rising.clamp(max=440).to(dtype)[..., None]
    if case.poison:
        for cache in (k_cache, v_cache):
            worst = -128 if cache.dtype == torch.int8 else math.nan
            poison = torch.full((case.head_dim,), worst, device=device).to(cache.dtype)
            _bits(_slots(case, cache))[position < 0] = _bits(poison)
    tokens = () if case.query_tokens == 1 else (case.query_tokens,)
    q = torch.randn(len(case.lengths), *tokens, case.query_heads, case.head_dim, generator=random, device=device)
    if case.growth:
        q[..., 0] = 4
    k_scale, v_scale = _scales(case, position, random, device)
    return {
        "q": (q * case.q_factor).to(FORMATS[case.query].dtype),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": block_table,
        "seq_lens": seq_lens,
        "sinks": _sinks(case, random, device),
        "sm_scale": case.head_dim**-0.5,
        "window_left": case.window_left,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "layout": case.axes,
    }


def _caches(case, pages, random, device):
    dtype = FORMATS[case.kv_format].dtype
    middle = (case.page_size, case.kv_heads) if case.axes == "NHD" else (case.kv_heads, case.page_size)
    parts = 2 if "interleaved" in case.layout else 1
    made = []
    for _ in range(2 // parts):
        cache = torch.empty(pages, *middle, parts * case.head_dim, dtype=dtype, device=device)
        step = max(1, CHUNK // cache[0].numel())
        for start in range(0, pages, step):
            part = cache[start : start + step]
            values = torch.randn(part.shape, generator=random, device=device)
            part.copy_(values if dtype != torch.int8 else (values * INT8_UNIT).round().clamp(-127, 127))
        made += list(cache.split(case.head_dim, dim=-1))
    return made


def _positions(case, pages, block_table, in_use, seq_lens):
    """The position that each slot holds, -1 where none: [pages, page_size]."""
    position = torch.full((pages, case.page_size), -1, dtype=torch.int64, device=block_table.device)
    rows, columns = in_use.nonzero(as_tuple=True)
    at = columns[:, None] * case.page_size + torch.arange(case.page_size, device=block_table.device)
    position[block_table[rows, columns].long()] = torch.where(at < seq_lens[rows, None], at, -1)
    return position


def _slots(case, cache):
    """The cache in the order pages, page_size, kv_heads."""
    return cache if case.axes == "NHD" else cache.transpose(1, 2)


def _bits(tensor):
    return tensor.view(torch.uint8 if tensor.dtype.itemsize == 1 else torch.int16)


def _scales(case, position, random, device):
    k_granularity, v_granularity = case.granularity, case.v_granularity or case.granularity
    k_scale = _scale(case, k_granularity, position, lambda x: 0.5 + x, random, device)
    v_scale = _scale(case, v_granularity, position, lambda x: torch.exp2(6 * x - 4), random, device)
    return k_scale, v_scale


def _scale(case, granularity, position, spread, random, device):
    if granularity == "none":
        return None
    shapes = {
        "tensor": (1,),
        "head": (case.kv_heads,),
        "channel": (case.kv_heads, case.head_dim),
        "token_head": (*position.shape, case.kv_heads),
    }
    scale = spread(torch.rand(shapes[granularity], generator=random, device=device)) / _unit(case)
    if granularity == "token_head":
        scale[position < 0] = math.nan if case.poison else 1.0
    return scale.transpose(1, 2) if granularity == "token_head" and case.axes != "NHD" else scale


def _unit(case):
    """What stands for 1 in the cache."""
    return INT8_UNIT if case.kv_format == "int8" else 1


def _sinks(case, random, device):
    if case.sinks != "near":
        return torch.full((case.query_heads,), float(case.sinks), device=device)
    read = max(1, max(case.lengths) if case.window_left < 0 else min(case.window_left + 1, max(case.lengths)))
    return math.log(read) + 0.5 + 4 * torch.rand(case.query_heads, generator=random, device=device) - 2
