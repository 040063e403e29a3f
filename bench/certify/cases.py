"""The small seeded cases of a certificate: what a server of gpt-oss calls, with poison around and extreme sinks."""

import itertools
import math
from dataclasses import dataclass, replace

import torch

from lowp.formats import FORMATS
from lowp.paged.cases import POISON_PAGE, Case
from lowp.paged.layouts import as_bits, axes_of, k_and_v, tensor_sizes
from lowp.paged.memory import poisoned
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE
from lowp.paged.tables import block_table

ODD_LENGTHS = (1, 0, 15, 16, 17, 128, 129, 300, 1000)
LONG_LENGTHS = (3000, 2047, 777, 0)
WINDOW_LEFT = 127  # gpt-oss's
FORMATS_AND_SCALES = (("e4m3", "none"), ("e4m3", "tensor"), ("e4m3", "head"), ("bf16", "none"))
LAYOUTS = ("interleaved", "HND", "NHD")
SCALE_SHAPES = {"none": None, "tensor": (1,), "head": (KV_HEADS,)}

STRESS = {
    "no sink": {"sinks": -math.inf},
    "sink over all": {"sinks": 1e4},
    "small sink": {"sinks": -1e4},
    "large scores": {"q_factor": 8.0},
    "growing scores": {"growth": 60.0},
}


def decode_cases() -> dict[str, Case]:
    """The decode calls by name: formats, scales and windows; several query tokens; extreme sinks and scores."""
    cases = {}
    for (kv_format, granularity), window_left in itertools.product(FORMATS_AND_SCALES, (-1, WINDOW_LEFT)):
        case = Case(
            ODD_LENGTHS, kv_format=kv_format, granularity=granularity, window_left=window_left, layout="interleaved"
        )
        cases[f"{kv_format}, scales {granularity}, window {window_left}"] = case
    for kv_format, tokens, window_left in itertools.product(("e4m3", "bf16"), (2, 4), (-1, WINDOW_LEFT)):
        case = Case(ODD_LENGTHS, kv_format=kv_format, query_tokens=tokens, window_left=window_left)
        cases[f"{kv_format}, {tokens} query tokens, window {window_left}"] = replace(case, layout="interleaved")
    for kv_format, (name, settings) in itertools.product(("e4m3", "bf16"), STRESS.items()):
        cases[f"{kv_format}, {name}"] = Case(LONG_LENGTHS, kv_format=kv_format, layout="interleaved", **settings)
    base = Case(ODD_LENGTHS, granularity="head")
    return cases | {
        "HND": base,
        "NHD": replace(base, layout="NHD"),
        "pages of 128": replace(base, page_size=128),
        "one KV head": replace(base, query_heads=8, kv_heads=1),
        "wide table": replace(base, table_tokens=131072),
        "batch of 70": replace(base, lengths=ODD_LENGTHS[1:] * 8 + (900,) * 6),
    }


@dataclass(frozen=True)
class CopyCase:
    """A call of the cache writer or of the gather. tokens: written, or those of each sequence that are read."""

    kv_format: str
    granularity: str
    layout: str
    tokens: tuple[int, ...]
    starts: tuple[int, ...] | None = None
    dtype: str = "bf16"
    seed: int = 0


def write_cases() -> dict[str, CopyCase]:
    """The calls of the cache writer by name."""
    cases = {}
    for (kv_format, granularity), layout in itertools.product(FORMATS_AND_SCALES, LAYOUTS):
        case = CopyCase(kv_format, granularity, layout, tokens=(37,), seed=len(cases))
        cases[f"{kv_format}, scales {granularity}, {layout}"] = case
    base = CopyCase("e4m3", "head", "interleaved", tokens=(1,))
    return cases | {
        "one token": base,
        "1000 tokens": replace(base, tokens=(1000,)),
        "FP16": replace(base, dtype="fp16"),
    }


def read_cases() -> dict[str, CopyCase]:
    """The calls of the gather by name."""
    cases = {}
    for (kv_format, granularity), layout in itertools.product(FORMATS_AND_SCALES, LAYOUTS):
        case = CopyCase(kv_format, granularity, layout, tokens=(37, 0, 16, 1000), seed=len(cases))
        cases[f"{kv_format}, scales {granularity}, {layout}"] = case
    windows = CopyCase("e4m3", "head", "interleaved", tokens=(200, 127, 128, 1, 55), starts=(73, 0, 1, 0, 40))
    return cases | {"windows": windows, "FP16": replace(windows, dtype="fp16")}


def write_arguments(case: CopyCase) -> dict:
    """Draw the arguments of `cache_write` on the CPU, into poisoned memory; some slots are -1.

    The values span 25 powers of two, with infinities, NaN and negative zeros among them.
    """
    random = torch.Generator().manual_seed(case.seed)
    (tokens,) = case.tokens
    pages = -(-tokens // PAGE_SIZE) + 3
    values = torch.randn(tokens, 2 * KV_HEADS, HEAD_DIM, generator=random)
    values *= torch.exp2(torch.randint(-14, 11, values.shape, generator=random))
    flat = values.view(-1)
    flat[::997], flat[1::1009], flat[2::1013] = torch.inf, -0.0, torch.nan
    k, v = values.to(FORMATS[case.dtype].dtype).split(KV_HEADS, dim=1)
    slots = torch.randperm(pages * PAGE_SIZE, generator=random)[:tokens]
    slots[3::7] = -1
    k_cache, v_cache = _caches(case, pages)
    return {
        "k": k,
        "v": v,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "slot_mapping": slots,
        "k_scale": _scale(case, random),
        "v_scale": _scale(case, random),
        "layout": axes_of(case.layout),
    }


def read_arguments(case: CopyCase) -> dict:
    """Draw the arguments of `cache_read` on the CPU: caches of random bits, outputs in poisoned memory.

    Each sequence has a row more than tokens, and table entries of pages that are not read are out of range.
    """
    random = torch.Generator().manual_seed(case.seed)
    starts = case.starts or (0,) * len(case.tokens)
    spans = [
        (start // PAGE_SIZE, -(-end // PAGE_SIZE)) if start < end else (0, 0)
        for start, end in zip(starts, case.tokens, strict=True)
    ]
    width = max(end for _, end in spans) + 2
    table, pages = block_table(spans, width, random, spare_pages=3, unused=POISON_PAGE)
    k_cache, v_cache = _caches(case, pages)
    for cache in (k_cache, v_cache):
        bits = as_bits(cache)
        drawn = torch.randint(0, 2 ** (8 * bits.element_size()), bits.shape, generator=random)
        bits.copy_(drawn.to(torch.int32).to(bits.dtype))
    counts = [end - start + 1 for start, end in zip(starts, case.tokens, strict=True)]
    rows = (sum(counts) + 5, KV_HEADS, HEAD_DIM)
    k_out, v_out = (poisoned(rows, FORMATS[case.dtype].dtype) for _ in range(2))
    return {
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_table": table,
        "starts": None if case.starts is None else torch.tensor(case.starts, dtype=torch.int32),
        "ends": torch.tensor(case.tokens, dtype=torch.int32),
        "cu_out": torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32),
        "k_out": k_out,
        "v_out": v_out,
        "k_scale": _scale(case, random),
        "v_scale": _scale(case, random),
        "layout": axes_of(case.layout),
    }


def with_content(arguments: dict, changed: dict) -> None:
    """Copy the content of `changed` into tensors of the same shapes."""
    for name, tensor in arguments.items():
        if isinstance(tensor, torch.Tensor):
            tensor.copy_(changed[name])


def _caches(case: CopyCase, pages: int) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = FORMATS[case.kv_format].dtype
    sizes = tensor_sizes(case.layout, pages, PAGE_SIZE, KV_HEADS, HEAD_DIM)
    return k_and_v([poisoned(size, dtype) for size in sizes], HEAD_DIM)


def _scale(case: CopyCase, random: torch.Generator) -> torch.Tensor | None:
    shape = SCALE_SHAPES[case.granularity]
    return None if shape is None else 0.3 + torch.rand(shape, generator=random)
