"""The paged cache: the float64 reference against a dense attention written apart, and the seeded cases."""

import dataclasses
import math

import pytest
import torch

from kernels_tests.lowp import dense
from lowp.paged.cases import POISON_PAGE, Case, build
from lowp.paged.reference import reference

SMALL = Case(lengths=(1, 0, 17, 40, 33), query_heads=8, kv_heads=2, granularity="head")


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
        {"query_tokens": 3},
        {"query_tokens": 20, "window_left": 12, "granularity": "token_head"},
        {"query_tokens": 33, "kv_format": "bf16", "granularity": "none", "layout": "NHD"},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()) or "plain",
)
def test_the_reference_is_attention(changes):
    case = dataclasses.replace(SMALL, **changes)
    arguments = build(case)
    out, lse = reference(**arguments)
    judged, judged_lse = dense.attention(**arguments)
    assert torch.allclose(out, judged, rtol=1e-12, atol=1e-14)
    assert torch.allclose(lse, judged_lse, rtol=1e-12, atol=1e-14)


def test_no_sinks_are_sinks_of_minus_infinity():
    arguments = build(SMALL)
    out, lse = reference(**arguments | {"sinks": None})
    same, same_lse = reference(**arguments | {"sinks": torch.full((8,), -math.inf)})
    assert torch.equal(out, same) and torch.equal(lse, same_lse)


def each_token(arguments):
    """Several query tokens as calls of one token, on sequences that are cut behind its position."""
    tokens = arguments["q"].shape[1]
    ends = [(arguments["seq_lens"] - tokens + 1 + i).clamp(min=0) for i in range(tokens)]
    calls = [arguments | {"q": arguments["q"][:, i], "seq_lens": ends[i]} for i in range(tokens)]
    return torch.stack([reference(**call)[0] for call in calls], 1)


@pytest.mark.parametrize("window_left", [-1, 0, 20])
def test_query_tokens_are_as_many_calls(window_left):
    lengths = (1, 0, 2, 17, 40, 33)
    arguments = build(dataclasses.replace(SMALL, lengths=lengths, query_tokens=3, window_left=window_left))
    out, lse = reference(**arguments)
    assert torch.allclose(out, each_token(arguments), rtol=1e-12, atol=1e-14)
    unseen = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    for b, i in unseen:
        assert (out[b, i] == 0).all() and torch.equal(lse[b, i].float(), arguments["sinks"])
    assert (out.abs().sum((2, 3)) == 0).sum() == len(unseen)


def test_poison_is_where_it_should_be():
    arguments = build(SMALL)
    unused = arguments["block_table"] == POISON_PAGE
    assert unused.sum() == unused.numel() - sum(math.ceil(n / 16) for n in SMALL.lengths)
    assert arguments["k_cache"].float().isnan().any() and arguments["v_cache"].float().isnan().any()
