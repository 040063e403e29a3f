"""Greedy answers that part: at ties, or not."""

import json
import math

import pytest

from kernels_tests.vllm_launch.plugin import ties
from kernels_tests.vllm_launch.plugin.ties import Answer, Difference

REFERENCE = Answer([5, 7, 9], [{5: -0.1, 6: -3.0}, {7: -0.70, 8: -0.72}, {9: -0.2, 1: -2.0}])
BOUND = 0.1


def answer(second: int, top: dict[int, float]) -> Answer:
    """An answer that differs from REFERENCE in its second token."""
    return Answer([5, second, 4], [{5: -0.15, 6: -3.0}, top, {4: -0.3}])


def judged(difference: Difference) -> bool:
    """Whether it is a tie, and not only one of the swaps that are allowed."""
    return ties.judge([("a prompt", difference)] * 2, BOUND)[0]


def test_equal_answers_do_not_part():
    assert ties.first_difference(REFERENCE, REFERENCE) is None
    assert ties.first_difference(REFERENCE.cut(1), answer(8, {8: -0.1})) is None  # as far as both go
    assert ties.judge([], BOUND)[0]


def test_a_tie_passes_and_is_shown():
    difference = ties.first_difference(answer(8, {8: -0.70, 7: -0.75}), REFERENCE)
    assert difference == Difference(1, (8, 7), (-0.70, -0.75), (-0.72, -0.70))
    assert difference.gap == pytest.approx(0.05)
    passes, text = ties.judge([("a prompt", difference)], BOUND)
    assert passes and all(f"{value:.3f}" in text for value in (*difference.candidate, *difference.reference))


@pytest.mark.parametrize(
    "top", [{8: -0.1, 7: -2.5}, {8: -0.1}, {8: math.nan, 7: -0.7}], ids=["sure", "not among the likely", "NaN"]
)
def test_no_tie(top):
    assert not judged(ties.first_difference(answer(8, top), REFERENCE))


def test_no_tie_for_the_reference():
    """The candidate is undecided, the reference is not."""
    sure = Answer([5, 7], [{5: -0.1}, {7: -0.01, 8: -5.0}])
    assert not judged(ties.first_difference(answer(8, {8: -0.7, 7: -0.7}), sure))


@pytest.mark.parametrize(("small", "swaps", "passes"), [(0, 1, True), (17, 2, False), (18, 2, True), (18, 3, False)])
def test_a_tenth_may_be_swaps_of_experts(small, swaps, passes):
    assert ties.judge_gaps([0.05] * small + [2.0] * swaps, BOUND)[0] == passes


@pytest.mark.parametrize("gap", [5.1, math.inf, math.nan])
def test_no_swap_is_that_large(gap):
    assert not ties.judge_gaps([0.05] * 40 + [gap], BOUND)[0]


def test_distances_end_where_answers_part():
    assert ties.distances(answer(8, {8: -0.1}), REFERENCE) == pytest.approx([0.05])
    assert ties.distances(REFERENCE.cut(2), REFERENCE) == [0.0, 0.0]


def test_finite_log_probabilities():
    assert ties.is_finite([REFERENCE])
    assert not ties.is_finite([REFERENCE, answer(8, {8: -0.1, 7: math.nan})])


def test_answers_survive_json():
    assert Answer.from_json(json.loads(json.dumps(REFERENCE.to_json()))) == REFERENCE
