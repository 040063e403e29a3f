"""The greedy gate: more than 95% of the positions, and no loops."""

import pytest

from bench.completion import Answer, match
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


def test_answers_of_different_length_are_an_error():
    with pytest.raises(ValueError):
        match(answer([1, 2]), answer([1, 2, 3]), "baseline", GATE)


def test_the_margin_is_the_references_smallest():
    reference = Answer(prompt="p", text="t", token_ids=[1, 2], margins=[3.0, 0.5])
    assert match(answer([1, 2], margin=9.0), reference, "baseline", GATE).margin == 0.5
