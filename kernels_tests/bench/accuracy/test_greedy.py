"""The greedy gate: more than 95% of the positions, and no loops."""

import math

import pytest

from bench import suite
from bench.accuracy import greedy
from bench.accuracy.greedy import Answer, match
from bench.servers.client import Endpoint
from flashinfer_patches.errors import Problem

GATE = suite.load("default", "any").greedy
ENDPOINT = Endpoint("http://127.0.0.1:1", "m", "some-folder", "some.log")


def answer(ids, margin=1.0):
    return Answer(prompt="p", text="t", token_ids=ids, margins=[margin] * len(ids))


@pytest.fixture
def reply(monkeypatch):
    """A function that sets the log-probabilities of the server's one token."""

    def set_tops(tops):
        choice = {"text": "t", "token_ids": [1], "logprobs": {"top_logprobs": tops}}
        monkeypatch.setattr(greedy, "post", lambda *_: {"choices": [choice]})

    return set_tops


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False), (32, False)])
def test_31_of_32_pass_and_30_do_not(wrong, passed):
    reference = list(range(32))
    candidate = [99] * wrong + reference[wrong:]
    result = match(answer(candidate), answer(reference), "baseline", GATE)
    assert (result.matched, result.passed) == (32 - wrong, passed)


def test_equal_tokens_at_shifted_positions_do_not_match():
    result = match(answer(list(range(1, 33))), answer(list(range(32))), "baseline", GATE)
    assert result.matched == 0 and not result.passed


@pytest.mark.parametrize(("distinct", "passed"), [(12, True), (11, False)])
def test_a_loop_of_few_tokens_fails(distinct, passed):
    ids = [i % distinct for i in range(32)]
    assert match(answer(ids), answer(ids), "baseline", GATE).passed is passed


@pytest.mark.parametrize(("length", "reference"), [(31, 32), (32, 31), (31, 31), (0, 32), (32, 0), (0, 0)])
def test_a_truncated_answer_is_a_failed_match(length, reference):
    result = match(answer(list(range(length))), answer(list(range(reference))), "baseline", GATE)
    shorter = min(length, reference)
    assert (result.matched, result.missing, result.tokens, result.passed) == (shorter, 32 - shorter, 32, False)
    assert math.isfinite(result.margin)


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
def test_an_answer_without_two_log_probabilities_is_still_an_answer(reply, tops, margins):
    reply(tops)
    assert greedy.answer(ENDPOINT, "p", 1).margins == margins


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_log_probability_that_is_not_finite_is_a_problem(reply, value):
    reply([{"a": -0.1, "b": value}])
    with pytest.raises(Problem) as caught:
        greedy.answer(ENDPOINT, "p", 1)
    assert caught.value.kind == "requests"


def test_the_margin_is_the_smallest_of_the_reference():
    reference = Answer(prompt="p", text="t", token_ids=[1, 2], margins=[3.0, 0.5])
    assert match(answer([1, 2], margin=9.0), reference, "baseline", GATE).margin == 0.5
