"""int8 caches and several query tokens on a GPU, against the reference. Imports torch, pytest and lowp alone."""

import dataclasses
import math
import random

import pytest
import torch

from kernels_tests.lowp.on_gpu import LAUNCHES, check, fitted, run
from lowp.jit.launcher import captured
from lowp.paged import tight
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import launch, make_workspace, sink_decode
from lowp.sink_decode.call import Call

pytestmark = pytest.mark.gpu

ODD = (1, 0, 2, 3, 15, 16, 17, 33, 64, 1000, 2047, 2500)
INT8_SCALES = [
    ("tensor", None),
    ("head", None),
    ("token_head", None),
    ("channel", "tensor"),
    ("channel", "head"),
    ("channel", "token_head"),
]
# (query heads a KV head, query tokens); 16 heads with 4 tokens are not built, nor with 3 where there are 128 dims.
TOKENS = {
    64: [(group, tokens) for group in (1, 5, 8, 16) for tokens in (2, 3, 4) if group * tokens <= 48],
    128: [(group, tokens) for group in (1, 5, 8, 16) for tokens in (2, 3, 4) if group * tokens <= 32],
}


def scales(draw, kv_format):
    drawn = INT8_SCALES if kv_format == "int8" else [("none", None), ("tensor", None), *INT8_SCALES[:3]]
    return draw.choice(drawn)


def combinations(count, tokens):
    """Random draws over everything that a caller can choose; the same each time."""
    draw = random.Random(tokens)
    for seed in range(count):
        kv_format = draw.choice(["int8", "e4m3", "bf16", "fp16"]) if tokens else "int8"
        head_dim = draw.choice([64, 128])
        group, query_tokens = draw.choice(TOKENS[head_dim]) if tokens else (draw.choice([1, 5, 8, 12, 16]), 1)
        granularity, v_granularity = scales(draw, kv_format)
        kv_heads = draw.choice([1, 2, 8])
        case = Case(
            lengths=tuple(draw.sample(ODD, len(ODD)))[: draw.choice([1, 3, 12])],
            query_heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=head_dim,
            page_size=draw.choice([16, 32, 64, 128]),
            kv_format=kv_format,
            query=draw.choice(["bf16", "fp16"]),
            granularity=granularity,
            v_granularity=v_granularity,
            layout=draw.choice(["NHD", "HND", "interleaved"]),
            window_left=draw.choice([-1, -1, 0, 1, 15, 127, 800]),
            query_tokens=query_tokens,
            seed=seed,
        )
        yield case, draw.choice(list(LAUNCHES))


@pytest.mark.parametrize(
    ("case", "fixed"),
    [*combinations(48, tokens=False), *combinations(72, tokens=True)],
    ids=lambda value: None if isinstance(value, Case) else value,
)
def test_combinations(case, fixed):
    check(build(case, "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("granularity", "v_granularity"), INT8_SCALES)
@pytest.mark.parametrize("window_left", [-1, 127])
def test_int8_scales(head_dim, granularity, v_granularity, window_left):
    case = Case(ODD, head_dim=head_dim, kv_format="int8", granularity=granularity, window_left=window_left)
    check(build(dataclasses.replace(case, v_granularity=v_granularity), "cuda"))


@pytest.mark.parametrize("value", [-128, -127, -1, 0, 1, 127])
def test_int8_values_are_exact(value):
    """Every value equal: the output is that value times the scale, whatever the weights are."""
    arguments = build(Case((100,), kv_format="int8", granularity="head", sinks=-math.inf, poison=False), "cuda")
    arguments["v_cache"].fill_(value)
    out = sink_decode(**arguments).float()
    exact = (value * arguments["v_scale"]).repeat_interleave(8)[None, :, None].expand_as(out)
    assert torch.allclose(out, exact, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("head_dim", "group", "query_tokens"), [(dim, group, tokens) for dim in TOKENS for group, tokens in TOKENS[dim]]
)
@pytest.mark.parametrize("kv_format", ["e4m3", "bf16", "int8"])
def test_query_tokens(head_dim, group, query_tokens, kv_format):
    case = Case(ODD, 2 * group, 2, head_dim, kv_format=kv_format, granularity="head", query_tokens=query_tokens)
    check(build(case, "cuda"))
    check(build(dataclasses.replace(case, window_left=31), "cuda"))


@pytest.mark.parametrize("fixed", LAUNCHES)
@pytest.mark.parametrize("window_left", [-1, 2, 127])
@pytest.mark.parametrize("sinks", ["near", -math.inf, 1e4])
def test_query_tokens_in_every_launch(fixed, window_left, sinks):
    case = Case((3, 0, 1, 15, 16, 17, 2047, 2500), window_left=window_left, sinks=sinks, query_tokens=4)
    check(build(case, "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("fixed", LAUNCHES)
def test_as_many_columns_as_there_may_be(fixed):
    """48: more than a warp has lanes."""
    check(build(Case((3, 0, 17, 700), 32, 2, query_tokens=3, window_left=127), "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("lengths", [(20001, *(512,) * 20, 3, 0), (30000, 30001), (140_001, 5), (700,) * 140])
@pytest.mark.parametrize("kv_format", ["e4m3", "int8"])
def test_ragged_batches(lengths, kv_format):
    case = Case(lengths, 16, 2, kv_format=kv_format, granularity="token_head", query_tokens=3, poison=False)
    check(build(case, "cuda"))


@pytest.mark.parametrize("kv_format", ["e4m3", "bf16", "int8"])
@pytest.mark.parametrize("window_left", [-1, 40])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_query_tokens_are_as_many_calls(kv_format, window_left, head_dim):
    lengths = (5, 2000, 333, 64)
    case = Case(lengths, 16, 2, head_dim, kv_format=kv_format, granularity="head", window_left=window_left)
    arguments = build(dataclasses.replace(case, query_tokens=4), "cuda")
    out, lse = run(arguments)
    for i in range(4):
        single = arguments | {"q": arguments["q"][:, i], "seq_lens": arguments["seq_lens"] - 3 + i}
        alone, alone_lse = run(single)
        apart = (out[:, i].double() - alone.double()).norm(dim=-1)
        assert (apart <= 8e-3 * alone.double().norm(dim=-1)).all()  # either is within 4e-3 of the exact one
        assert (lse[:, i] - alone_lse).abs().max() < 1e-3


def test_a_single_query_token_may_have_its_axis():
    arguments = build(Case((300, 0, 17)), "cuda")
    with_axis, lse = run(arguments | {"q": arguments["q"][:, None]})
    out, plain_lse = run(arguments)
    assert torch.equal(with_axis[:, 0], out) and torch.equal(lse[:, 0], plain_lse)


def test_strided_query_tokens_are_taken_as_they_are():
    arguments = build(Case((100, 900), 16, 2, query_tokens=2), "cuda")
    wide = torch.randn(2, 3, 20, 64, device="cuda").bfloat16()
    check(arguments | {"q": wide[:, 1:, 2:18]})


@pytest.mark.parametrize("fixed", ["chosen", "cluster 8", "planned, 2 warps"])
@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_a_graph_sees_other_lengths(fixed, granularity):
    case = Case((2000, 17, 1000, 2) * 4, kv_format="int8", granularity=granularity, v_granularity="head", poison=False)
    case = dataclasses.replace(case, table_tokens=4096, query_tokens=3)
    arguments = build(case, "cuda")
    out, lse = torch.empty_like(arguments["q"]), torch.empty(arguments["q"].shape[:-1], device="cuda")
    buffers = {"out": out, "lse": lse, "workspace": make_workspace(16, 64, 8, 64, "cuda", query_tokens=3)}
    fit = LAUNCHES[fixed] and fitted(arguments, LAUNCHES[fixed])

    def decode():
        if fit is None:
            sink_decode(**arguments, **buffers)
        else:
            launch.run(Call(**arguments, **buffers), fit)

    graph = captured(decode)
    pages = len(arguments["k_cache"])
    for lengths in ((0, 2000, 16, 4000) * 4, (1,) * 16, (4096, *(64,) * 15)):
        arguments["seq_lens"].copy_(torch.tensor(lengths))
        random_pages = torch.randint(0, pages, arguments["block_table"].shape, device="cuda")
        arguments["block_table"].copy_(random_pages)
        out.fill_(math.nan)
        graph.replay()
        exact, exact_lse = reference(**arguments)
        assert tight.problems(out, exact) == []
        assert (lse.double() - exact_lse).abs().max() < 2e-3


@pytest.mark.parametrize("fixed", LAUNCHES)
def test_the_same_bits_every_time(fixed):
    case = Case((9000, *(700,) * 20), kv_format="int8", granularity="channel", v_granularity="token_head", poison=False)
    arguments = build(dataclasses.replace(case, query_tokens=4), "cuda")
    first, first_lse = run(arguments, LAUNCHES[fixed])
    for _ in range(10):
        out, lse = run(arguments, LAUNCHES[fixed])
        assert torch.equal(out, first) and torch.equal(lse, first_lse)
