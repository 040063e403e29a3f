"""Decode attention: the reference against plain attention, mutants that the tight test must catch."""

import dataclasses
import math

import pytest
import torch

from kernels_tests.lowp import tight
from lowp.formats import amax_scale, quantize
from lowp.sink_decode import reference, sink_decode
from lowp.sink_decode.inputs import POISON_PAGE, Case, build

SMALL = Case(lengths=(1, 0, 17, 40, 33), query_heads=8, kv_heads=2, granularity="head")


def dense(arguments, case):
    """Attention written another way: gather all tokens in order, one softmax with the sink as an extra column."""
    out = []
    for b, length in enumerate(case.lengths):
        rows = []
        for i in range(case.query_heads):
            h = i // (case.query_heads // case.kv_heads)
            keys, values = [], []
            for j in range(length):
                if case.window_left >= 0 and length - 1 - j > case.window_left:
                    continue
                page, slot = int(arguments["block_table"][b, j // case.page_size]), j % case.page_size
                at = (page, slot, h) if case.axes == "NHD" else (page, h, slot)
                where = {"none": None, "tensor": (0,), "head": (h,), "channel": (h,), "token_head": at}
                for name, into, of in (("k", keys, case.granularity), ("v", values, case.v_granularity)):
                    scale_at = where[of or case.granularity]
                    scale = 1.0 if scale_at is None else arguments[f"{name}_scale"][scale_at].double()
                    into.append(arguments[f"{name}_cache"][at].double() * scale)
            if not keys:
                rows.append(torch.zeros(case.head_dim, dtype=torch.float64))
                continue
            scores = torch.stack(keys) @ arguments["q"][b, i].double() * arguments["sm_scale"]
            weights = torch.softmax(torch.cat([scores, arguments["sinks"][i : i + 1].double()]), 0)[:-1]
            rows.append(weights @ torch.stack(values))
        out.append(torch.stack(rows))
    return torch.stack(out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layout": "NHD", "granularity": "token_head"},
        {"layout": "interleaved", "granularity": "tensor", "window_left": 20},
        {"layout": "NHD interleaved", "granularity": "token_head"},
        {"granularity": "token_head", "page_size": 32, "window_left": 0},
        {"kv_format": "bf16", "granularity": "none", "head_dim": 128, "sinks": -math.inf},
        {"kv_format": "fp16", "query": "fp16", "granularity": "none", "query_heads": 6, "sinks": 80.0},
        {"kv_format": "int8", "granularity": "token_head", "layout": "NHD"},
        {"kv_format": "int8", "granularity": "channel", "v_granularity": "token_head", "window_left": 9},
        {"kv_format": "int8", "granularity": "channel", "v_granularity": "head", "head_dim": 128},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()) or "plain",
)
def test_the_reference_is_attention(changes):
    case = dataclasses.replace(SMALL, **changes)
    arguments = build(case)
    out, lse = reference(**arguments)
    assert torch.allclose(out, dense(arguments, case), rtol=1e-12, atol=1e-14)
    assert torch.equal(lse[1].float(), arguments["sinks"])


def test_poison_is_where_it_should_be():
    arguments = build(SMALL)
    unused = arguments["block_table"] == POISON_PAGE
    assert unused.sum() == unused.numel() - sum(math.ceil(n / 16) for n in SMALL.lengths)
    assert arguments["k_cache"].float().isnan().any() and arguments["v_cache"].float().isnan().any()


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


@pytest.mark.parametrize("window_left", [-1, 0, 20])
def test_query_tokens_are_as_many_calls(window_left):
    case = dataclasses.replace(TOKEN_CASE, lengths=(1, 0, 2, 17, 40, 33), window_left=window_left, poison=True)
    arguments = build(case)
    out, lse = reference(**arguments)
    assert torch.allclose(out, each_token(arguments), rtol=1e-12, atol=1e-14)
    unseen = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    for b, i in unseen:
        assert (out[b, i] == 0).all() and torch.equal(lse[b, i].float(), arguments["sinks"])
    assert (out.abs().sum((2, 3)) == 0).sum() == len(unseen)


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
