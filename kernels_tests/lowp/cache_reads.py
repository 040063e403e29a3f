"""Inputs of one read of the cache for tests, and the memory that it must leave behind, byte for byte.

Caches hold random bits: every stored value, NaN and infinities too. The expectation goes through the tokens in a loop
and multiplies in float64, which is exact; it is computed on a CPU for tensors of any device.
"""

import itertools
from dataclasses import dataclass

import torch

from kernels_tests.lowp.memory import LAYOUTS, caches
from lowp.formats import FORMATS
from lowp.paged.layouts import as_bits, axes_of, in_nhd
from lowp.paged.memory import canonical, memory_of, moved, poisoned
from lowp.paged.tables import block_table

POISON_PAGE = 2**30  # a block table entry that must never be followed


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
    k_out, v_out = outputs(case, sum(counts) + 5)
    arguments = {
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": table[:, :width],
        "starts": None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32),
        "ends": torch.tensor(case.ends, dtype=torch.int32),
        "cu_out": cu_out,
        "k_out": k_out,
        "v_out": v_out,
        "k_scale": scale(case, case.granularity, k_cache, random),
        "v_scale": scale(case, case.v_granularity or case.granularity, v_cache, random),
        "layout": axes_of(case.layout),
    }
    return moved(arguments, device)


def outputs(case: Case, rows: int) -> list[torch.Tensor]:
    """Make the rows of K and V as views of poisoned memory."""
    size, dtype = (case.kv_heads, case.head_dim), FORMATS[case.out].dtype
    if case.joined:
        return list(poisoned((rows, 2, *size), dtype).unbind(1))
    return [poisoned((rows, *size), dtype) for _ in range(2)]


def scale(case: Case, granularity: str, cache: torch.Tensor, random: torch.Generator) -> torch.Tensor | None:
    """Draw scales; those per token and head lie in twice their memory, with NaN between them."""
    shapes = {"tensor": (1,), "head": (case.kv_heads,), "channel": (case.kv_heads, case.head_dim)}
    if granularity == "none":
        return None
    if granularity != "token_head":
        return 0.3 + torch.rand(shapes[granularity], generator=random)
    memory = torch.full((*cache.shape[:3], 2), torch.nan)
    memory[..., 0] = 0.3 + torch.rand(cache.shape[:3], generator=random)
    return memory[..., 0]


def problems(before: dict, after: dict) -> list[str]:
    """Compare all memory after a call with what it had to become. before: a copy of the arguments, from `moved`."""
    before, after = moved(before, "cpu"), moved(after, "cpu")
    messages = []
    for name in ("k", "v"):
        write(before, name)
        result, exact = (canonical(arguments[f"{name}_out"]) for arguments in (after, before))
        if not result.equal(exact):
            messages.append(f"{name}_out: {int((result != exact).sum())} values")
        as_bits(after[f"{name}_out"]).copy_(as_bits(before[f"{name}_out"]))  # NaN may differ in form
    for name, tensor in before.items():
        if isinstance(tensor, torch.Tensor) and not memory_of(tensor).equal(memory_of(after[name])):
            messages.append(f"{name}: other memory has changed")
    return messages


def write(arguments: dict, name: str) -> None:
    """Write what the call has to, token by token."""
    cache = in_nhd(arguments[f"{name}_cache"], arguments["layout"])
    scale_of, out = arguments[f"{name}_scale"], arguments[f"{name}_out"]
    if scale_of is not None and scale_of.dim() == 3:
        scale_of = in_nhd(scale_of, arguments["layout"])
    starts = [0] * len(arguments["ends"]) if arguments["starts"] is None else arguments["starts"].tolist()
    for i, (start, end) in enumerate(zip(starts, arguments["ends"].tolist(), strict=True)):
        for token in range(start, end):
            page, slot = int(arguments["block_table"][i, token // cache.shape[1]]), token % cache.shape[1]
            factor = torch.ones(1) if scale_of is None else scale_of
            if factor.dim() == 3:
                factor = factor[page, slot]
            factor = factor.view(-1, 1) if factor.dim() == 1 else factor
            exact = cache[page, slot].double() * factor.double()
            out[int(arguments["cu_out"][i]) + token - start] = exact.float().to(out.dtype)


SIZES = (
    {},
    {"ends": (1, 15, 16, 17, 0, 33), "starts": (0, 3, 0, 16, 0, 31), "page_size": 16, "kv_heads": 8},
    {"ends": (40, 33, 70), "shared": 2, "room": 3, "kv_heads": 3, "head_dim": 32, "joined": True},
    {"ends": (130, 300), "starts": (3, 173), "page_size": 128, "kv_heads": 1, "head_dim": 128, "joined": True},
    {"ends": (5, 0, 0, 9), "starts": (2, 0, 0, 9), "page_size": 1, "kv_heads": 5, "head_dim": 96, "room": 1},
)
GRANULARITIES = {
    "e4m3": ("none", "tensor", "head", "token_head", ("head", "none"), ("token_head", "tensor")),
    "int8": ("tensor", "head", "token_head", "channel", ("channel", "head"), ("channel", "token_head")),
    "bf16": ("none",),
    "fp16": ("none",),
}


def cases():
    """Every format, granularity, output and layout, with odd sizes in turn."""
    sizes = itertools.cycle(SIZES)
    for number, (kv_format, out, layout) in enumerate(
        itertools.product(GRANULARITIES, ("bf16", "fp16"), LAYOUTS),
    ):
        for granularity in GRANULARITIES[kv_format]:
            k, v = granularity if isinstance(granularity, tuple) else (granularity, granularity)
            v = "tensor" if v == "channel" else v
            yield Case(
                kv_format=kv_format,
                out=out,
                layout=layout,
                granularity=k,
                v_granularity=v,
                seed=number,
                **next(sizes),
            )
