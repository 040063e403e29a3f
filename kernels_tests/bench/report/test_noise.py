"""How well a ratio is known, and how it is written."""

import math
import random

import pytest

from bench.record.noise import (
    FASTER,
    INSIDE,
    MAX_NOISE,
    NOISE_ERRORS,
    NOT_KNOWN,
    SLOWER,
    TOO_NOISY,
    Ratio,
    ratios,
    verdict,
)
from bench.report.numbers import number, ratio_cell, with_noise
from bench.serving.compare_speed import compared


@pytest.mark.parametrize(
    ("value", "noise", "expected"),
    [
        (0.63, 1.05, TOO_NOISY),
        (1.0, 0.3001, TOO_NOISY),
        (2.0, 0.4, TOO_NOISY),
        (0.88, 0.18, INSIDE),
        (1.25, 0.3, INSIDE),
        (1.31, 0.3, FASTER),
        (0.69, 0.3, SLOWER),
        (1.5, math.inf, NOT_KNOWN),
    ],
)
def test_a_ratio_is_a_difference_or_noise_or_not_comparable(value, noise, expected):
    ratio = Ratio(value, noise)
    assert verdict(ratio) == expected
    assert verdict(ratio, more_is_faster=False) == {FASTER: SLOWER, SLOWER: FASTER}.get(expected, expected)
    ending = " (noise)" if expected in (INSIDE, TOO_NOISY) else f", {expected}"
    assert ratio_cell(ratio).strip("*") == f"{with_noise(ratio)}{ending}"
    assert ratio_cell(ratio).startswith("**") is (expected in (FASTER, SLOWER))


def test_ratios_and_their_noise():
    base = {"a": [100.0, 100.0, 100.0], "b": [90.0, 100.0, 110.0]}
    assert ratios({"a": [120.0] * 3, "c": [1.0] * 3}, {"a": base["a"]}) == {"a": Ratio(pytest.approx(1.2), 0)}
    result = ratios({"a": [120.0] * 3, "b": [90.0, 100.0, 110.0]}, base)
    typical = (0.1**2 / 2) ** 0.5  # of the spreads 0, 0, 0.1 and 0.1
    assert result["a"] == (pytest.approx(1.2), pytest.approx(NOISE_ERRORS * 1.2 * typical * (2 / 3) ** 0.5))
    assert result["b"] == (pytest.approx(1.0), pytest.approx(NOISE_ERRORS * 0.1 * (2 / 3) ** 0.5))
    assert ratios({"a": [600.0]}, {"a": [500.0]}) == {"a": Ratio(1.2, math.inf)}


def test_points_are_paired_by_name_and_not_by_order():
    samples, base = {"a": [1.0] * 3, "b": [2.0] * 3, "d": [8.0] * 3}, {"d": [2.0] * 3, "c": [9.0] * 3, "b": [4.0] * 3}
    assert ratios(samples, base) == {"b": Ratio(0.5, 0), "d": Ratio(4.0, 0)}


@pytest.mark.parametrize("seed", range(20))
def test_samples_of_the_same_rate_are_no_difference(seed):
    chance = random.Random(seed)
    first, second = ({point: [chance.uniform(450, 550) for _ in range(3)] for point in range(6)} for _ in "ab")
    result = list(ratios(second, first).values())
    verdicts = [verdict(ratio) for ratio in result]
    assert set(verdicts) <= {INSIDE, TOO_NOISY} and (TOO_NOISY in verdicts) == any(r.noise > MAX_NOISE for r in result)
    line = compared(result, "baseline")
    assert all(with_noise(ratio) in line for ratio in (min(result), max(result)))


def test_the_points_of_each_verdict_are_counted():
    several = [Ratio(1.2, 0.07), Ratio(1.0, 0.06), Ratio(0.9, 0.5)]
    assert compared(several, "A").endswith("of A (3 points: 1 faster, 1 inside the noise, 1 too noisy to compare)")
    assert compared(several[:1], "A", more_is_faster=False) == "1.20x ± 0.07 of A (1 point: slower)"
    assert compared([Ratio(1.2, math.inf)], "A") == "1.20x of A (1 point: noise not known)"


@pytest.mark.parametrize(("noise", "text"), [(0.03, "1.02x ± 0.03"), (0.004, "1.020x ± 0.004"), (math.inf, "1.02x")])
def test_a_ratio_has_the_digits_of_its_noise(noise, text):
    assert with_noise(Ratio(1.02, noise)) == text
    assert with_noise(Ratio(1.004, math.inf)) == "1.004x"


def test_numbers_have_three_digits():
    assert [number(value) for value in (1234.5, 123.4, 12.34, 1.234)] == ["1,234", "123", "12.3", "1.23"]
