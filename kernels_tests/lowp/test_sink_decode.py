"""Decode attention: mutants that the tight test must catch, and the API on a CPU."""

import dataclasses
import math

import pytest
import torch

from lowp.formats import amax_scale, quantize
from lowp.paged import tight
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import sink_decode

SMALL = Case(lengths=(1, 0, 17, 40, 33), query_heads=8, kv_heads=2, granularity="head")


def shifted(arguments, **changes):
    return reference(**arguments | changes)[0]


MUTANTS = {
    "sink dropped": lambda a: shifted(a, sinks=torch.full_like(a["sinks"], -math.inf)),
    "sink of the next head": lambda a: shifted(a, sinks=a["sinks"].roll(1)),
    "sink in log2 units": lambda a: shifted(a, sinks=a["sinks"] * math.log(2)),
    "last token missed": lambda a: shifted(a, seq_lens=a["seq_lens"] - 1),
    "window one short": lambda a: shifted(a, window_left=a["window_left"] - 1),
    "window one long": lambda a: shifted(a, window_left=a["window_left"] + 1),
    "k_scale dropped": lambda a: shifted(a, k_scale=None),
    "v_scale dropped": lambda a: shifted(a, v_scale=None),
    "scales exchanged": lambda a: shifted(a, k_scale=a["v_scale"], v_scale=a["k_scale"]),
    "pages exchanged": lambda a: shifted(a, block_table=a["block_table"].roll(1, 0)),
    "heads exchanged": lambda a: shifted(a, k_cache=a["k_cache"].flip(1)),
}


INT8_MUTANTS = {
    "scales of the next channel": lambda a: shifted(a, k_scale=a["k_scale"].roll(1, 1)),
    "channel scales of the next head": lambda a: shifted(a, k_scale=a["k_scale"].roll(1, 0)),
    "channel scales dropped": lambda a: shifted(a, k_scale=a["k_scale"].mean().view(1)),
    "scales of the next token": lambda a: shifted(a, v_scale=a["v_scale"].roll(1, 2)),
    "K scaled like V": lambda a: shifted(a, k_scale=a["v_scale"]),
    "bytes without sign": lambda a: shifted(a, v_cache=a["v_cache"].view(torch.uint8)),
}


TOKEN_CASE = Case((777, 801), query_heads=8, kv_heads=2, granularity="head", query_tokens=3, poison=False)
TOKEN_MUTANTS = {
    "the causal mask one long": lambda a: each_token(a, 1),
    "the causal mask one short": lambda a: each_token(a, -1),
    "no causal mask": lambda a: reference(**a | {"q": a["q"].view(6, 8, 64)} | repeated(a, 3))[0].view(2, 3, 8, 64),
    "query tokens in the other order": lambda a: shifted(a, q=a["q"].flip(1)).flip(1),
}


def each_token(arguments, longer=0):
    """Several query tokens as calls of one token, on sequences that are cut behind its position."""
    tokens = arguments["q"].shape[1]
    ends = [(arguments["seq_lens"] - tokens + 1 + i + longer).clamp(min=0) for i in range(tokens)]
    return torch.stack([shifted(arguments, q=arguments["q"][:, i], seq_lens=ends[i]) for i in range(tokens)], 1)


def repeated(arguments, times):
    return {name: arguments[name].repeat_interleave(times, 0) for name in ("block_table", "seq_lens")}


@pytest.mark.parametrize("mutant", TOKEN_MUTANTS)
def test_the_tight_test_catches_with_query_tokens(mutant):
    arguments = build(dataclasses.replace(TOKEN_CASE, window_left=15 if "long" in mutant else -1, lengths=(30, 24)))
    exact, _ = reference(**arguments)
    assert tight.problems(exact.to(torch.bfloat16), exact) == []
    assert tight.problems(TOKEN_MUTANTS[mutant](arguments).to(torch.bfloat16), exact)


@pytest.mark.parametrize("mutant", INT8_MUTANTS)
def test_the_tight_test_catches_in_int8(mutant):
    case = Case((777, 801), query_heads=8, kv_heads=2, kv_format="int8", granularity="channel", poison=False)
    arguments = build(dataclasses.replace(case, v_granularity="token_head"))
    exact, _ = reference(**arguments)
    assert tight.problems(exact.to(torch.bfloat16), exact) == []
    assert tight.problems(INT8_MUTANTS[mutant](arguments).to(torch.bfloat16), exact)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_tight_test_catches(mutant):
    case = Case(lengths=(777, 801), query_heads=8, kv_heads=2, granularity="head", window_left=255, poison=False)
    arguments = build(case)
    exact, _ = reference(**arguments)
    assert tight.problems(exact.to(torch.bfloat16), exact) == []
    assert tight.problems(MUTANTS[mutant](arguments).to(torch.bfloat16), exact)


def test_rounding_to_fp16_passes_where_the_output_is_subnormal():
    exact = torch.linspace(-1e-6, 1e-6, 64, dtype=torch.float64).view(1, 1, 64)
    rounded = exact.half()
    assert tight.problems(rounded, exact) == []
    assert tight.problems(rounded + 2**-24, exact)
    assert tight.problems(exact.bfloat16() * 1.02, exact)


@pytest.mark.parametrize("granularity", ["none", "tensor", "head", "token_head"])
def test_the_api_runs_on_a_cpu(granularity):
    arguments = build(dataclasses.replace(SMALL, granularity=granularity))
    lse = torch.empty(5, 8)
    out = torch.empty_like(arguments["q"])
    assert sink_decode(**arguments, out=out, lse=lse) is out
    exact, exact_lse = reference(**arguments)
    assert tight.problems(out, exact) == [] and torch.allclose(lse.double(), exact_lse)


@pytest.mark.parametrize("k_granularity", ["channel", "token_head"])
def test_int8_costs_at_most_2_percent(k_granularity):
    """The format's bound against bf16 storage of the same values, with scales as `formats` makes them."""
    case = Case((777, 801), query_heads=8, kv_heads=2, kv_format="bf16", layout="NHD", sinks=0.0, poison=False)
    arguments = build(case)
    exact, _ = reference(**arguments)
    stored = {}
    for name, granularity in (("k", k_granularity), ("v", "token_head")):
        cache = arguments[f"{name}_cache"]
        scale = amax_scale(cache, "int8", granularity, "NHD")
        stored[f"{name}_cache"] = quantize(cache, "int8", scale).values
        stored[f"{name}_scale"] = scale[0, 0] if granularity == "channel" else scale[..., 0]
    out = sink_decode(**arguments | stored)
    assert ((out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max() <= 0.02
