"""Seeded inputs of one write into the cache, for tests: every format, granularity and layout, with poison around."""

from dataclasses import dataclass

import torch

from lowp.formats import FORMATS
from lowp.paged.layouts import axes_of, k_and_v
from lowp.paged.memory import caches, moved, poisoned

SCALES_IN_PAGE = "HND, scales in the page"  # lines of K and V of a token, then K's scales and V's


@dataclass(frozen=True)
class Case:
    """The choices of one call. rope: rotate, with a table of this dtype ("table": fp32, "inputs": the inputs' dtype).

    slots: how many of the tokens have an entry in slot_mapping; the other rows are padding. skipped: the share of
    entries that are -1. granularity, v_granularity: of the scales of K and of V, V's where it differs; token_head: the
    call computes them. layout: one of `lowp.paged.memory`, or SCALES_IN_PAGE with scales per token and head.
    """

    tokens: int = 37
    slots: int = 37
    skipped: float = 0.2
    pages: int = 9
    page_size: int = 16
    kv_heads: int = 2
    query_heads: int = 8
    head_dim: int = 64
    inputs: str = "bf16"
    kv_format: str = "e4m3"
    granularity: str = "none"
    v_granularity: str | None = None
    layout: str = "HND"
    rope: str = ""
    seed: int = 0


def build(case: Case, device: str = "cpu") -> dict:
    """Draw the arguments of `cache_write`, or of `rope_cache_write`; q, k and v are views of one tensor."""
    random = torch.Generator().manual_seed(case.seed)
    heads = case.query_heads + 2 * case.kv_heads
    values = torch.randn(case.tokens, heads, case.head_dim, generator=random)
    values *= torch.exp2(torch.randint(-14, 11, values.shape, generator=random))
    flat = values.view(-1)
    flat[::997], flat[1::1009] = torch.inf, -0.0
    if not case.rope:
        flat[2::1013] = torch.nan
    q, k, v = values.to(FORMATS[case.inputs].dtype).split([case.query_heads, case.kv_heads, case.kv_heads], dim=1)
    slots = torch.randperm(case.pages * case.page_size, generator=random)[: case.slots]
    slots[torch.rand(case.slots, generator=random) < case.skipped] = -1
    k_cache, v_cache, *scales = _page_with_scales(case) if case.layout == SCALES_IN_PAGE else _caches(case)
    k_scale, v_scale = scales or (
        _scale(case, case.granularity, k_cache, random),
        _scale(case, case.v_granularity or case.granularity, v_cache, random),
    )
    arguments = {
        "k": k,
        "v": v,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "slot_mapping": slots,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "layout": axes_of(case.layout),
    }
    if case.rope:
        angles = 6.3 * torch.rand(200, case.head_dim // 2, generator=random)
        table = 1.35 * torch.cat((angles.cos(), angles.sin()), dim=-1)  # YaRN's factor at 32 times the length
        arguments["q"] = q
        arguments["positions"] = torch.randint(0, len(table), (case.tokens,), generator=random)
        arguments["cos_sin"] = table if case.rope == "table" else table.to(q.dtype)
    return moved(arguments, device)


def _caches(case: Case) -> tuple[torch.Tensor, ...]:
    return caches(case.layout, case.kv_format, case.pages, case.page_size, case.kv_heads, case.head_dim)


def _page_with_scales(case: Case) -> tuple[torch.Tensor, ...]:
    """Make caches and scales of K and V as views of poisoned pages that hold both."""
    rows, line = case.kv_heads * case.page_size, 2 * case.head_dim
    memory = poisoned((case.pages, rows * (line + 8)), torch.int8)
    lines, scales = memory.split([rows * line, rows * 8], dim=1)
    k_cache, v_cache = k_and_v([lines.unflatten(1, (case.kv_heads, case.page_size, line))], case.head_dim)
    k_scale, v_scale = scales.view(torch.float32).unflatten(1, (2, case.kv_heads, case.page_size)).unbind(1)
    return k_cache, v_cache, k_scale, v_scale


def _scale(case: Case, granularity: str, cache: torch.Tensor, random: torch.Generator) -> torch.Tensor | None:
    """Draw scales; those that the call computes are poison, every third element of their memory."""
    shapes = {"tensor": (1,), "head": (case.kv_heads,), "channel": (case.kv_heads, case.head_dim)}
    if granularity == "none":
        return None
    if granularity == "token_head":
        return poisoned((*cache.shape[:3], 3), torch.float32)[..., 1]
    return 0.3 + torch.rand(shapes[granularity], generator=random)
