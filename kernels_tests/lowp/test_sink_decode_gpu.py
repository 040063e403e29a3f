"""The decode kernel on a GPU against the float64 reference. Imports torch, pytest and lowp alone: runs without vLLM."""

import dataclasses
import math
import random

import pytest
import torch

from kernels_tests.lowp.on_gpu import LAUNCHES, check, run
from lowp.jit.launcher import captured
from lowp.paged import tight
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import launch, make_workspace, sink_decode
from lowp.sink_decode.call import Call

pytestmark = pytest.mark.gpu

ODD = (1, 0, 15, 16, 17, 31, 33, 64, 1000, 2047, 2500)


def combinations(count):
    """Random draws over everything that a caller can choose; the same each time."""
    draw = random.Random(0)
    for seed in range(count):
        kv_format = draw.choice(["e4m3", "e4m3", "bf16", "fp16"])
        kv_heads, group = draw.choice([(8, 8), (8, 8), (1, 8), (2, 16), (3, 1), (4, 5), (2, 7), (1, 12)])
        case = Case(
            lengths=tuple(draw.sample(ODD, len(ODD)))[: draw.choice([1, 3, 11])],
            query_heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=draw.choice([64, 64, 128]),
            page_size=draw.choice([16, 32, 64, 128]),
            kv_format=kv_format,
            query=draw.choice(["bf16", "fp16"]),
            granularity=draw.choice(["none", "tensor", "head", "token_head"]),
            layout=draw.choice(["NHD", "HND", "interleaved"]),
            window_left=draw.choice([-1, -1, 0, 15, 127, 800]),
            seed=seed,
        )
        yield case, draw.choice(list(LAUNCHES))


@pytest.mark.parametrize(
    ("case", "fixed"), list(combinations(72)), ids=lambda value: None if isinstance(value, Case) else value
)
def test_combinations(case, fixed):
    check(build(case, "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("fixed", LAUNCHES)
@pytest.mark.parametrize("kv_format", ["e4m3", "bf16"])
@pytest.mark.parametrize("window_left", [-1, 127])
def test_odd_lengths(fixed, kv_format, window_left):
    check(build(Case(ODD, kv_format=kv_format, granularity="head", window_left=window_left), "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("fixed", LAUNCHES)
@pytest.mark.parametrize(("kv_format", "granularity"), [("e4m3", "head"), ("int8", "token_head")])
@pytest.mark.parametrize(("layout", "window_left"), [("interleaved", -1), ("NHD interleaved", 127)])
def test_interleaved_keys_and_values(fixed, kv_format, granularity, layout, window_left):
    case = Case(ODD, kv_format=kv_format, granularity=granularity, layout=layout, window_left=window_left)
    check(build(case, "cuda"), LAUNCHES[fixed])


def test_values_may_lie_before_the_keys():
    arguments = build(Case(ODD, layout="interleaved"), "cuda")
    check(arguments | {"k_cache": arguments["v_cache"], "v_cache": arguments["k_cache"]})


STRESS = {
    "large scores": {"q_factor": 8.0},
    "growing scores": {"growth": 60.0},
    "no sink": {"sinks": -math.inf},
    "sink over all": {"sinks": 1e4},
    "small sink": {"sinks": -1e4},
}


@pytest.mark.parametrize("fixed", LAUNCHES)
@pytest.mark.parametrize("stress", STRESS)
def test_stress(fixed, stress):
    check(build(Case((3000, 2047, 777, 0), **STRESS[stress]), "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e30])
@pytest.mark.parametrize("kv_format", ["e4m3", "fp16", "bf16"])
def test_queries_beyond_fp16(factor, kv_format):
    """The scale of the keys takes the query's factor back: only the range in between is at stake."""
    arguments = build(Case((700, 33), kv_format=kv_format, q_factor=factor), "cuda")
    check(arguments | {"k_scale": torch.tensor([1 / factor], device="cuda")})


@pytest.mark.parametrize(("head_dim", "query_heads", "tokens"), [(64, 64, 1), (128, 64, 1), (128, 128, 1), (64, 64, 3)])
def test_an_fp16_query_over_a_bf16_cache_keeps_all_its_bits(head_dim, query_heads, tokens):
    """In registers and in shared memory. Rounded to bf16 it would move these log-sum-exps by some 1e-2."""
    case = Case((700, 33), query_heads, head_dim=head_dim, query_tokens=tokens, kv_format="bf16", query="fp16")
    arguments = build(dataclasses.replace(case, q_factor=8.0), "cuda")
    check(arguments)
    _, lse = run(arguments)
    assert (lse.double() - reference(**arguments)[1]).abs().max() < 2e-4


@pytest.mark.parametrize(
    "lengths",
    [
        (5000,) * 40,
        (131072, *(512,) * 31),
        (*(512,) * 40, 40000, 0, 4096, 20001),
        (16384, 0, 3, *(700,) * 29),
        (8192, 512, 512, 512),
        (30000, 30001),
        (3000, 17, 2500) * 7,
        (*(9000,) * 17, 0),
        (*(2600, 0, 5000) * 60,),
    ],
)
@pytest.mark.parametrize("fixed", ["chosen", "planned", "planned, alone", "planned, 4 warps", "planned, 2 warps"])
def test_ragged_batches(lengths, fixed):
    case = Case(lengths, granularity="head", poison=False, table_tokens=20000)
    check(build(case, "cuda"), LAUNCHES[fixed])


def test_a_long_row_over_a_single_kv_head():
    """As many KV splits as there may be."""
    check(build(Case((140_001, 5), query_heads=8, kv_heads=1), "cuda"))


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 10, 20, 32, 36, 70, 140, 300])
@pytest.mark.parametrize(
    ("window_left", "table_tokens"), [(-1, 900), (-1, 8192), (-1, 16384), (-1, 40000), (127, 40000)]
)
def test_every_launch_that_is_chosen(batch, window_left, table_tokens):
    draw = random.Random(batch)
    lengths = (*draw.choices([0, 1, 300, 900], k=batch - 1), 900)
    check(build(Case(lengths, window_left=window_left, table_tokens=table_tokens), "cuda"))


@pytest.mark.parametrize("fixed", ["chosen", "cluster 8", "planned, 2 warps"])
def test_a_graph_sees_other_lengths_tables_and_content(fixed):
    case = Case((2000, 17, 1000, 0) * 6, granularity="head", table_tokens=4096, poison=False)
    arguments = build(case, "cuda")
    out, lse = torch.empty_like(arguments["q"]), torch.empty(arguments["q"].shape[:2], device="cuda")
    buffers = {"out": out, "lse": lse, "workspace": make_workspace(24, 64, 8, 64, "cuda")}

    def decode():
        if LAUNCHES[fixed] is None:
            sink_decode(**arguments, **buffers)
        else:
            launch.run(Call(**arguments, **buffers), LAUNCHES[fixed])

    graph = captured(decode)
    for seed, lengths in enumerate(((0, 2000, 16, 4000) * 6, (1,) * 24, (4096, *(64,) * 23)), start=1):
        changed = build(dataclasses.replace(case, lengths=lengths, seed=seed), "cuda")
        pages = min(len(changed["k_cache"]), len(arguments["k_cache"]))
        changed["block_table"] %= pages
        for name in ("q", "block_table", "seq_lens", "sinks"):
            arguments[name].copy_(changed[name])
        for name in ("k_cache", "v_cache"):
            arguments[name][:pages].copy_(changed[name][:pages])
        out.fill_(math.nan)
        graph.replay()
        exact, exact_lse = reference(**arguments)
        assert tight.problems(out, exact) == []
        assert (lse.double() - exact_lse).abs().max() < 2e-3


@pytest.mark.parametrize("fixed", LAUNCHES)
def test_the_same_bits_every_time(fixed):
    arguments = build(Case((9000, *(700,) * 20), granularity="head", poison=False), "cuda")
    workspace = make_workspace(21, 64, 8, 64, "cuda")
    first, first_lse = run(arguments, LAUNCHES[fixed], workspace)
    for _ in range(20):
        out, lse = run(arguments, LAUNCHES[fixed], workspace)
        assert torch.equal(out, first) and torch.equal(lse, first_lse)


def test_strided_queries_and_tables_are_taken_as_they_are():
    arguments = build(Case((100, 900), query_heads=16, kv_heads=2), "cuda")
    wide_q = torch.randn(2, 40, 64, device="cuda").bfloat16()
    wide_table = torch.zeros(2, arguments["block_table"].shape[1] + 7, dtype=torch.int32, device="cuda")
    wide_table[:, 3:-4] = arguments["block_table"]
    check(arguments | {"q": wide_q[:, 8:24], "block_table": wide_table[:, 3:-4]})


def test_a_workspace_that_is_too_small_raises():
    arguments = build(Case((100,) * 32, table_tokens=40000), "cuda")
    with pytest.raises(ValueError, match="workspace has 16 bytes; this call needs"):
        sink_decode(**arguments, workspace=torch.zeros(16, dtype=torch.uint8, device="cuda"))
