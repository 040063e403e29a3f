"""The greedy gate: more than 95% of the positions, and no loops."""

import math
from types import SimpleNamespace

import pytest

from bench.servers import client as completion
from bench.servers.client import Answer, match
from vllm_launch import profile

GATE = profile.load("fp8").greedy


def answer(ids, margin=1.0):
    return Answer(prompt="p", text="t", token_ids=ids, margins=[margin] * len(ids))


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False), (32, False)])
def test_31_of_32_pass_and_30_do_not(wrong, passed):
    reference = list(range(32))
    got = [99] * wrong + reference[wrong:]
    result = match(answer(got), answer(reference), "baseline", GATE)
    assert (result.matched, result.passed) == (32 - wrong, passed)


def test_equal_tokens_at_shifted_positions_do_not_match():
    result = match(answer(list(range(1, 33))), answer(list(range(32))), "baseline", GATE)
    assert result.matched == 0 and not result.passed


@pytest.mark.parametrize(("distinct", "passed"), [(12, True), (11, False)])
def test_a_loop_proves_nothing(distinct, passed):
    ids = [i % distinct for i in range(32)]
    assert match(answer(ids), answer(ids), "baseline", GATE).passed is passed


@pytest.mark.parametrize(("own", "reference"), [(31, 32), (32, 31), (31, 31), (0, 32), (32, 0), (0, 0)])
def test_a_short_answer_is_a_failed_match(own, reference):
    found = match(answer(list(range(own))), answer(list(range(reference))), "baseline", GATE)
    short = min(own, reference)
    assert (found.matched, found.missing, found.tokens, found.passed) == (short, 32 - short, 32, False)
    assert math.isfinite(found.margin)


@pytest.mark.parametrize(
    ("tops", "margins"),
    [
        ([{"token_id:1": -0.1, "token_id:2": -2.1}], [2.0]),
        ([{"token_id:1": -0.1}], [0.0]),
        ([{}], [0.0]),
        ([], []),
        (None, []),
    ],
)
def test_an_answer_without_two_log_probabilities_is_still_an_answer(monkeypatch, tops, margins):
    choice = {"text": "t", "token_ids": [1], "logprobs": {"top_logprobs": tops}}
    monkeypatch.setattr(completion, "post", lambda *_: {"choices": [choice]})
    server = SimpleNamespace(plan=SimpleNamespace(model=SimpleNamespace(name="m")))
    assert completion.greedy(server, "p", 1).margins == margins


def test_the_margin_is_the_references_smallest():
    reference = Answer(prompt="p", text="t", token_ids=[1, 2], margins=[3.0, 0.5])
    assert match(answer([1, 2], margin=9.0), reference, "baseline", GATE).margin == 0.5
