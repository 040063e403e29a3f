"""Seeded inputs of one read of the cache, for tests: every format, granularity and layout, with poison around.

Caches hold random bits: every stored value, NaN and infinities too.
"""

import itertools
from dataclasses import dataclass

import torch

from lowp.formats import FORMATS
from lowp.paged.cases import POISON_PAGE
from lowp.paged.layouts import as_bits, axes_of
from lowp.paged.memory import caches, moved, poisoned
from lowp.paged.tables import block_table


@dataclass(frozen=True)
class Case:
    """The choices of one call: tokens starts[i] to ends[i] - 1 of each sequence.

    room: rows of each sequence past its tokens. shared: pages of the first sequence that the others begin with too.
    granularity, v_granularity: of the scales of K and of V, V's where it differs. joined: K's and V's rows alternate
    in one tensor.
    """

    ends: tuple[int, ...] = (37, 0, 16, 100)
    starts: tuple[int, ...] | None = None
    room: int = 0
    shared: int = 0
    page_size: int = 16
    kv_heads: int = 2
    head_dim: int = 64
    out: str = "bf16"
    kv_format: str = "e4m3"
    granularity: str = "none"
    v_granularity: str | None = None
    layout: str = "HND"
    joined: bool = False
    seed: int = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The first token of each sequence that is read, and the end."""
        return list(zip(self.starts or (0,) * len(self.ends), self.ends, strict=True))


def build(case: Case, device: str = "cpu") -> dict:
    """Draw the arguments of `cache_read`, on poisoned outputs with a guard around and rows past the last."""
    random = torch.Generator().manual_seed(case.seed)
    size = case.page_size
    columns = [(start // size, -(-end // size)) if start < end else (0, 0) for start, end in case.spans]
    width = max(case.ends) // size + 4
    table, pages = block_table(columns, width + 2, random, spare_pages=3, unused=POISON_PAGE)
    for row, (first, end) in zip(table, columns, strict=True):
        row[first : min(case.shared, end)] = table[0, first : min(case.shared, end)]
    k_cache, v_cache = caches(case.layout, case.kv_format, pages, size, case.kv_heads, case.head_dim)
    for cache in (k_cache, v_cache):
        bits = as_bits(cache)
        limit = 2 ** (8 * bits.element_size())
        bits.copy_(torch.randint(0, limit, bits.shape, generator=random).to(torch.int32).to(bits.dtype))
    counts = [max(0, end - start) + case.room for start, end in case.spans]
    cu_out = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
    k_out, v_out = _outputs(case, sum(counts) + 5)
    arguments = {
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": table[:, :width],
        "starts": None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32),
        "ends": torch.tensor(case.ends, dtype=torch.int32),
        "cu_out": cu_out,
        "k_out": k_out,
        "v_out": v_out,
        "k_scale": _scale(case, case.granularity, k_cache, random),
        "v_scale": _scale(case, case.v_granularity or case.granularity, v_cache, random),
        "layout": axes_of(case.layout),
    }
    return moved(arguments, device)


def _outputs(case: Case, rows: int) -> list[torch.Tensor]:
    """Make the rows of K and V as views of poisoned memory."""
    size, dtype = (case.kv_heads, case.head_dim), FORMATS[case.out].dtype
    if case.joined:
        return list(poisoned((rows, 2, *size), dtype).unbind(1))
    return [poisoned((rows, *size), dtype) for _ in range(2)]


def _scale(case: Case, granularity: str, cache: torch.Tensor, random: torch.Generator) -> torch.Tensor | None:
    """Draw scales; those per token and head lie in twice their memory, with NaN between them."""
    shapes = {"tensor": (1,), "head": (case.kv_heads,), "channel": (case.kv_heads, case.head_dim)}
    if granularity == "none":
        return None
    if granularity != "token_head":
        return 0.3 + torch.rand(shapes[granularity], generator=random)
    memory = torch.full((*cache.shape[:3], 2), torch.nan)
    memory[..., 0] = 0.3 + torch.rand(cache.shape[:3], generator=random)
    return memory[..., 0]
