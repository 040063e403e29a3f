"""Unusual arguments that are taken, and those that are refused, on a GPU as on a CPU."""

import dataclasses
import math

import pytest
import torch

from kernels_tests.lowp.on_gpu import LAUNCHES, check, run
from lowp.paged import tight
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.sink_decode import make_workspace, sink_decode

pytestmark = pytest.mark.gpu

CASE = Case((1, 0, 17, 700, 2500), granularity="head")
FEW = ("chosen", "cluster 8", "one CTA, 2 warps", "planned, 2 warps")


@pytest.mark.parametrize("fixed", LAUNCHES)
@pytest.mark.parametrize("query_tokens", [1, 4])
@pytest.mark.parametrize("sink", [math.nan, math.inf])
def test_a_sink_without_a_value_makes_its_head_nan(sink, query_tokens, fixed):
    """Also where a sequence is empty; the other heads do not see it."""
    arguments = build(dataclasses.replace(CASE, query_tokens=query_tokens), "cuda")
    heads = [0, 9, 63]
    arguments["sinks"][heads] = sink
    out, lse = run(arguments, LAUNCHES[fixed])
    exact, exact_lse = reference(**arguments)
    assert torch.equal(out.isnan(), exact.isnan()) and torch.equal(lse.isnan(), exact_lse.isnan())
    assert out.isnan().all(-1)[..., heads].all() and out.isnan().any(-1).sum() == len(heads) * out[..., 0, 0].numel()
    unaffected = [head for head in range(64) if head not in heads]
    assert tight.problems(out[..., unaffected, :], exact[..., unaffected, :]) == []
    assert (lse[..., unaffected].double() - exact_lse[..., unaffected]).abs().max() < 2e-3


@pytest.mark.parametrize("fixed", LAUNCHES)
def test_a_sink_of_minus_infinity_is_none(fixed):
    arguments = build(CASE, "cuda")
    arguments["sinks"][::3] = -math.inf
    check(arguments, LAUNCHES[fixed])
    out, lse = run(arguments, LAUNCHES[fixed])
    assert (out[1] == 0).all() and (lse[1, ::3] == -math.inf).all(), "the empty sequence"


@pytest.mark.parametrize("fixed", FEW)
@pytest.mark.parametrize("page", [-1, 2**30])
@pytest.mark.parametrize("window_left", [-1, 15, 127])
def test_entries_that_are_not_read_may_be_anything(fixed, page, window_left):
    arguments = build(dataclasses.replace(CASE, window_left=window_left, table_tokens=4096), "cuda")
    for row, length in enumerate(CASE.lengths):
        first = max(0, length - 1 - window_left) // CASE.page_size if window_left >= 0 else 0
        arguments["block_table"][row, : min(first, math.ceil(length / CASE.page_size))] = page
        arguments["block_table"][row, math.ceil(length / CASE.page_size) :] = page
    check(arguments, LAUNCHES[fixed])


def test_a_table_of_too_many_tokens_is_refused():
    arguments = build(Case((40,)), "cuda")
    table = torch.zeros(1, 2**25, dtype=torch.int32, device="cuda")
    with pytest.raises(NotImplementedError, match="pages of 16 tokens"):
        sink_decode(**arguments | {"block_table": table})


@pytest.mark.parametrize("lengths", [(40,), (40, 7, 100)])
def test_the_widest_table(lengths):
    """One page under 2^29 tokens; its rows overlap, so that they take the memory of one."""
    arguments = build(Case(lengths, poison=False), "cuda")
    width, used = 2**25 - 1, arguments["block_table"].shape[1]
    wide = torch.zeros(len(lengths) * used + width, dtype=torch.int32, device="cuda")
    wide[: len(lengths) * used] = arguments["block_table"].flatten()
    check(arguments | {"block_table": wide.as_strided((len(lengths), width), (used, 1))})


@pytest.mark.parametrize("query_tokens", [1, 4])
def test_a_batch_of_none(query_tokens):
    arguments = build(dataclasses.replace(CASE, query_tokens=query_tokens), "cuda")
    none = {name: arguments[name][:0] for name in ("q", "block_table", "seq_lens")}
    lse = torch.empty(arguments["q"].shape[:-1], device="cuda")[:0]
    assert sink_decode(**arguments | none, lse=lse).shape == none["q"].shape
    assert sink_decode(**arguments | none, workspace=make_workspace(1, 64, 8, 64, "cuda")).numel() == 0
    torch.cuda.synchronize()


@pytest.mark.parametrize("fixed", FEW)
@pytest.mark.parametrize("window_left", [0, 1, 2499, 2500, 2**30, 2**31 + 5])
def test_windows(fixed, window_left):
    check(build(dataclasses.replace(CASE, window_left=window_left), "cuda"), LAUNCHES[fixed])


@pytest.mark.parametrize("window_left", [math.nan, 127.0, None])
def test_a_window_that_is_no_integer_is_refused(window_left):
    with pytest.raises(TypeError, match="expected an int"):
        sink_decode(**build(CASE, "cuda") | {"window_left": window_left})
