"""Arguments that `cache_read` refuses, each with one error; nothing is written then."""

import re

import pytest
import torch

from kernels_tests.lowp.cache_mistakes import CACHE_MISTAKES, check_refused
from kernels_tests.lowp.memory import replaced, strided
from kernels_tests.lowp.stand_ins import without_memory
from lowp.cache_read import cache_read
from lowp.cache_read.cases import Case, build

CASE = Case((37, 5, 100), starts=(0, 2, 40), granularity="head")
INT8 = Case(kv_format="int8", granularity="channel", v_granularity="head")


MISTAKES = CACHE_MISTAKES | {
    "fp32 rows": (lambda a: {"k_out": a["k_out"].float()}, TypeError, "k_out has dtype torch.float32"),
    "unequal dtypes": (lambda a: {"v_out": a["v_out"].half()}, TypeError, "v_out has dtype torch.float16; expected k_"),
    "unequal rows": (lambda a: {"v_out": a["v_out"][1:]}, ValueError, "v_out has shape .* expected k_out's"),
    "rank": (lambda a: {"k_out": a["k_out"][0]}, ValueError, "k_out has shape"),
    "head_dim": (
        lambda a: {n: a[n][..., :48] for n in ("k_out", "v_out")},
        NotImplementedError,
        "head_dim 48; this kernel has multiples of 32",
    ),
    "row strides": (lambda a: {"k_out": strided(a["k_out"])}, ValueError, "k_out has strides"),
    "rows elsewhere": (lambda a: {"v_out": a["v_out"].to("meta")}, ValueError, "v_out is on meta"),
    "other layout": (lambda a: {"layout": "NHD"}, ValueError, "k_cache has shape .* with k_out's 2 heads"),
    "no pages": (lambda a: {n: a[n][:0] for n in ("k_cache", "v_cache")}, ValueError, "no pages; expected one or more"),
    "scale strides": (lambda a: {"k_scale": torch.ones(4)[::2]}, ValueError, r"\(2,\) or \(2, 64\) contiguous"),
    "channels of e4m3": (
        lambda a: {"k_scale": torch.ones(2, 64)},
        NotImplementedError,
        "each channel of a cache in e4m3",
    ),
    "lengths of 64 bits": (lambda a: {"ends": a["ends"].long()}, TypeError, "ends has dtype torch.int64"),
    "every second length": (lambda a: {"ends": a["ends"].repeat(2)[::2]}, ValueError, "one contiguous axis"),
    "too few starts": (lambda a: {"starts": a["starts"][:2]}, ValueError, "starts has 2 entries; expected 3"),
    "too few offsets": (lambda a: {"cu_out": a["cu_out"][:3]}, ValueError, "cu_out has 3 entries; expected 4"),
    "offsets elsewhere": (lambda a: {"cu_out": a["cu_out"].to("meta")}, ValueError, "cu_out is on meta"),
    "table dtype": (lambda a: {"block_table": a["block_table"].long()}, TypeError, "block_table has dtype"),
    "table device": (lambda a: {"block_table": a["block_table"].to("meta")}, ValueError, "block_table is on meta"),
    "table shape": (lambda a: {"block_table": a["block_table"][:2]}, ValueError, "block_table has shape"),
    "table strides": (lambda a: {"block_table": strided(a["block_table"])}, ValueError, "with contiguous rows"),
    # entries
    "negative start": (lambda a: {"starts": replaced(a["starts"], 1, -1)}, ValueError, "starts has -1"),
    "negative end": (lambda a: {"ends": replaced(a["ends"], 1, -1)}, ValueError, "ends -1 to 100"),
    "end past the table": (lambda a: {"ends": replaced(a["ends"], 2, 161)}, ValueError, "5 to 161; expected 0 to 160"),
    "rows past the output": (lambda a: {"cu_out": replaced(a["cu_out"], 3, 106)}, ValueError, "from 0 to 105"),
    "decreasing rows": (lambda a: {"cu_out": replaced(a["cu_out"], 1, 41)}, ValueError, "expected not decreasing"),
    "negative row": (lambda a: {"cu_out": replaced(a["cu_out"], 0, -1)}, ValueError, "cu_out is .-1, "),
    "too few rows": (
        lambda a: {"cu_out": replaced(a["cu_out"], 0, 1)},
        ValueError,
        "sequence 0 has 36 rows.* expected 37",
    ),
    "page past the cache": (
        lambda a: {"block_table": replaced(a["block_table"], (2, 2), 12)},
        ValueError,
        r"block_table\[2, 2\] is 12, of a page that is read; expected 0 to 11",
    ),
    "negative page": (lambda a: {"block_table": replaced(a["block_table"], (0, 2), -1)}, ValueError, r"\[0, 2\] is -1"),
}


def check(arguments, error, words):
    check_refused(cache_read, arguments, ("k_out", "v_out"), error, words)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise(mistake):
    change, error, words = MISTAKES[mistake]
    arguments = build(CASE)
    check(arguments | change(arguments), error, words)


def test_scales_that_a_format_lacks_or_needs_raise():
    bfloat16 = build(Case(kv_format="bf16"))
    check(bfloat16 | {"k_scale": torch.ones(1)}, NotImplementedError, "which has no scales")
    int8 = build(INT8)
    for name in ("k_scale", "v_scale"):
        check(int8 | {name: None}, ValueError, f"{name} is None with a cache in int8")
    check(int8 | {"v_scale": torch.ones(2, 64)}, NotImplementedError, "v_scale has a scale for each channel")
    check(int8 | {"k_scale": torch.ones(129)[1:].view(2, 64)}, ValueError, "k_scale is not aligned")


def test_sizes_over_32_bits_raise():
    """On tensors without memory."""
    arguments = without_memory(build(Case(kv_heads=8)))
    rows = torch.empty(1, 8, 64, dtype=torch.bfloat16, device="meta").expand(2**25, 8, 64)
    with pytest.raises(NotImplementedError, match=re.escape(f"{2**25} rows are {2**31} threads")):
        cache_read(**arguments | {"k_out": rows, "v_out": rows})
    table = torch.empty(4, 2**27, dtype=torch.int32, device="meta")
    with pytest.raises(NotImplementedError, match="give it the columns that are in use"):
        cache_read(**arguments | {"block_table": table})
