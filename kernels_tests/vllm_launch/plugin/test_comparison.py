"""Verdicts on made results of two engines, and on made distances from transformers."""

import math

import pytest

from kernels_tests.vllm_launch.plugin import comparison, forced_decode, long_prompts
from kernels_tests.vllm_launch.plugin.comparison import Comparison
from kernels_tests.vllm_launch.plugin.ties import Answer

PAIR = Comparison("fp8", "stock-bf16", generated=0.05, prompts=0.1, only_ties=True)
REFERENCE = Answer([5, 7], [{5: -0.1, 6: -3.0}, {7: -0.7, 8: -0.75}])


def made_result(answer: Answer = REFERENCE, prompt: float = -2.0) -> dict:
    return {"answers": [answer.to_json()], "prompts": {"0": [prompt, -1.0]}}


def verdicts(candidate: dict, pair: Comparison = PAIR) -> list[bool]:
    """Whether the mean distances pass, and the texts."""
    results = {"fp8": candidate, "stock-bf16": made_result()}
    return [passes for passes, _ in comparison.verdicts(results, [pair], [100])]


def test_equal_results_pass():
    assert verdicts(made_result()) == [True, True]


def test_distances_have_bounds():
    near = Answer([5, 7], [{5: -0.19, 6: -3.0}, {7: -0.7, 8: -0.75}])
    assert verdicts(made_result(near)) == [True, True]
    assert verdicts(made_result(near), PAIR._replace(generated=0.04)) == [False, True]
    assert verdicts(made_result(prompt=-2.3)) == [False, True]
    assert verdicts(made_result(prompt=math.nan)) == [False, True]


def test_texts_part_at_ties():
    tie = Answer([5, 8], [{5: -0.1, 6: -3.0}, {8: -0.7, 7: -0.72}])
    wrong = Answer([5, 9], [{5: -0.1, 6: -3.0}, {9: -0.1, 7: -5.0}])
    assert verdicts(made_result(tie)) == [True, True]
    assert verdicts(made_result(wrong)) == [True, False]
    assert verdicts(made_result(wrong), PAIR._replace(only_ties=False)) == [True, True]


def test_no_comparison_without_both_engines():
    assert comparison.verdicts({"fp8": made_result()}, [PAIR], [100]) == []
    assert comparison.nearer_than_stock({"fp8": made_result()}) == []


@pytest.mark.parametrize(("prompt", "passes"), [(-2.2, True), (-2.5, False)])
def test_stock_fp8_is_the_measure(prompt, passes):
    results = {"fp8": made_result(prompt=prompt), "stock-fp8": made_result(prompt=-2.2), "stock-bf16": made_result()}
    assert [verdict[0] for verdict in comparison.nearer_than_stock(results)] == [passes]


@pytest.mark.parametrize(
    ("near", "far", "passes"),
    [
        (0.10, 0.8, [True, True]),
        (0.125, 0.8, [True, False]),  # further than stock vLLM
        (0.10, 0.2, [False, True]),  # wrong sinks are as near
        (math.nan, 0.8, [False, False]),
    ],
)
def test_distance_from_transformers(near, far, passes):
    distances = {"fp8": {"true": near, "zeroed": far}, "stock-fp8": {"true": 0.1, "zeroed": 0.8}}
    assert [verdict[0] for verdict in forced_decode.of_engine("fp8", 128, distances)] == passes


def test_long_prompts_fit_the_model():
    lengths = long_prompts.lengths(24, 32768)
    assert len(lengths) == 24 and min(lengths) == 32768
    assert max(lengths) + long_prompts.TOKENS <= 131072
