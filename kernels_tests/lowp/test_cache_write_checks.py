"""Arguments that writing into the cache refuses, each with one error; nothing is written then."""

import re

import pytest
import torch

from kernels_tests.lowp.cache_mistakes import CACHE_MISTAKES, check_refused
from kernels_tests.lowp.memory import replaced, strided
from lowp.cache_write import cache_write, rope_cache_write
from lowp.cache_write.cases import Case, build

CASE = Case(granularity="head", rope="table")
BFLOAT16 = Case(kv_format="bf16", rope="table")
INT8 = Case(kv_format="int8", granularity="head", rope="table")


MISTAKES = CACHE_MISTAKES | {
    "slots of 32 bits": (lambda a: {"slot_mapping": a["slot_mapping"].int()}, TypeError, "slot_mapping has dtype"),
    "slots of two axes": (lambda a: {"slot_mapping": a["slot_mapping"][None]}, ValueError, "slot_mapping has shape"),
    "every second slot": (lambda a: {"slot_mapping": a["slot_mapping"][::2]}, ValueError, "one contiguous axis"),
    "slots elsewhere": (
        lambda a: {"slot_mapping": a["slot_mapping"].to("meta")},
        ValueError,
        "slot_mapping is on meta",
    ),
    "slot past the cache": (
        lambda a: {"slot_mapping": replaced(a["slot_mapping"], 3, 144)},
        ValueError,
        "slot_mapping has slot 144; expected at most 143",
    ),
    "fp32 keys": (lambda a: {"k": a["k"].float()}, TypeError, "k has dtype torch.float32"),
    "unequal dtypes": (lambda a: {"v": a["v"].half()}, TypeError, "v has dtype torch.float16; expected k's"),
    "too few tokens": (lambda a: {"v": a["v"][:5]}, ValueError, "v has shape .5, 2, 64.; .* 37 tokens or more"),
    "unequal heads": (lambda a: {"v": a["v"][:, :1]}, ValueError, "v has shape .* expected k's heads"),
    "rank": (lambda a: {"k": a["k"][0]}, ValueError, "k has shape"),
    "head_dim": (
        lambda a: {"k": a["k"][..., :40]},
        NotImplementedError,
        "head_dim 40; this kernel has",
    ),
    "key strides": (lambda a: {"k": strided(a["k"])}, ValueError, "k has strides"),
    "key address": (lambda a: {"k": torch.zeros(5000).bfloat16()[4:4740].view(37, 2, 64)}, ValueError, "from address"),
    "other layout": (lambda a: {"layout": "NHD"}, ValueError, "k_cache has shape .* expected 4 axes with k's 2 heads"),
    "counts of 32 bits": (lambda a: {"saturated": torch.zeros(2).int()}, TypeError, "saturated has dtype"),
    "single count": (lambda a: {"saturated": torch.zeros(1).long()}, ValueError, "saturated has shape"),
    "query dtype": (lambda a: {"q": a["q"].half()}, TypeError, "q has dtype torch.float16; expected k's"),
    "query tokens": (lambda a: {"q": a["q"][:7]}, ValueError, "q has shape"),
    "query head_dim": (lambda a: {"q": a["q"].reshape(37, 4, 128)}, ValueError, "q has shape .* of k's head_dim, 64"),
    "output shape": (lambda a: {"q_out": a["q"][:, :4]}, ValueError, "q_out .37, 4, 64.; expected the same"),
    "position of 32 bits": (lambda a: {"positions": a["positions"].int()}, TypeError, "positions has dtype"),
    "too few positions": (lambda a: {"positions": a["positions"][:9]}, ValueError, "positions has shape"),
    "position past the table": (
        lambda a: {"positions": replaced(a["positions"], 2, 200)},
        ValueError,
        "positions has 200; expected 0 to 199",
    ),
    "negative position": (lambda a: {"positions": replaced(a["positions"], 2, -1)}, ValueError, "positions has -1"),
    "table dtype": (lambda a: {"cos_sin": a["cos_sin"].half()}, TypeError, "cos_sin has dtype torch.float16"),
    "table rank": (lambda a: {"cos_sin": a["cos_sin"][0]}, ValueError, "cos_sin has shape"),
    "part of a head": (lambda a: {"cos_sin": a["cos_sin"][:, :32]}, NotImplementedError, "rotates whole heads"),
    "table strides": (lambda a: {"cos_sin": strided(a["cos_sin"])}, ValueError, "cos_sin has strides"),
}


def check(arguments, error, words):
    check_refused(rope_cache_write, arguments, ("q", "k_cache", "v_cache"), error, words)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise(mistake):
    change, error, words = MISTAKES[mistake]
    arguments = build(CASE)
    check(arguments | change(arguments), error, words)


def test_scales_that_a_format_lacks_or_needs_raise():
    check(build(BFLOAT16) | {"k_scale": torch.ones(1)}, NotImplementedError, "which has no scales")
    for name in ("k_scale", "v_scale"):
        check(build(INT8) | {name: None}, ValueError, f"{name} is None with a cache in int8")


COMPUTED = Case(kv_format="int8", granularity="token_head", rope="table")
CHANNEL = Case(kv_format="int8", granularity="channel", v_granularity="head", rope="table")
SCALE_MISTAKES = {
    "static beside computed": (
        COMPUTED,
        lambda a: {"v_scale": torch.ones(2)},
        NotImplementedError,
        "this kernel computes both, of equal strides",
    ),
    "computed beside static": (COMPUTED, lambda a: {"k_scale": torch.ones(1)}, NotImplementedError, "computes both"),
    "unequal strides": (
        COMPUTED,
        lambda a: {"v_scale": a["v_scale"].contiguous()},
        NotImplementedError,
        "of equal strides",
    ),
    "shared scales": (
        COMPUTED,
        lambda a: {name: torch.ones(9, 2, 1).expand(9, 2, 16) for name in ("k_scale", "v_scale")},
        ValueError,
        "expected an element for each token and head",
    ),
    "order of axes": (
        COMPUTED,
        lambda a: {name: a[name].transpose(1, 2) for name in ("k_scale", "v_scale")},
        ValueError,
        "k_scale has shape .9, 16, 2.; expected one element, .* or .9, 2, 16.",
    ),
    "computed in e4m3": (
        Case(rope="table"),
        lambda a: {name: torch.ones(9, 2, 16) for name in ("k_scale", "v_scale")},
        NotImplementedError,
        "scales per token of a cache in e4m3",
    ),
    "head_dim of no power of two": (
        Case(kv_format="int8", granularity="token_head", rope="table", head_dim=96),
        lambda a: {},
        NotImplementedError,
        "head_dim 96 with scales per token; .* powers of two up to 512",
    ),
    "channels of V": (
        CHANNEL,
        lambda a: {"v_scale": a["k_scale"]},
        NotImplementedError,
        "v_scale has a scale",
    ),
    "channels in e4m3": (Case(rope="table"), lambda a: {"k_scale": torch.ones(2, 64)}, NotImplementedError, "in e4m3"),
    "channel strides": (CHANNEL, lambda a: {"k_scale": strided(a["k_scale"])}, ValueError, "contiguous"),
    "channel address": (CHANNEL, lambda a: {"k_scale": torch.ones(129)[1:].view(2, 64)}, ValueError, "not aligned"),
}


@pytest.mark.parametrize("mistake", SCALE_MISTAKES)
def test_mistakes_in_int8_scales_raise(mistake):
    case, change, error, words = SCALE_MISTAKES[mistake]
    arguments = build(case)
    check(arguments | change(arguments), error, words)


def test_too_many_tokens_raise():
    """On tensors without memory."""
    arguments = build(Case(kv_heads=8))
    rows = torch.empty(1, 8, 64, dtype=torch.bfloat16, device="meta").expand(2**25, 8, 64)
    for name in ("k_cache", "v_cache"):
        arguments[name] = arguments[name].to("meta")
    slots = torch.empty(2**25, dtype=torch.int64, device="meta")
    with pytest.raises(NotImplementedError, match=re.escape(f"{2**25} tokens are {2**31} threads")):
        cache_write(**arguments | {"k": rows, "v": rows, "slot_mapping": slots})
