"""Intervals and verdicts, by hand-computed cases."""

import pytest

from bench.rollout.intervals import Figure, at_most, drop, figure, student_t, worst


def test_an_interval_by_hand():
    """Of 1, 2, 3, 4: mean 2.5, s = sqrt(5/3) = 1.29099, t(3) = 3.182: 2.5 ± 3.182 * 1.29099 / 2."""
    result = figure([1.0, 2.0, 3.0, 4.0])
    assert result.value == 2.5
    assert (result.low, result.high) == pytest.approx((0.44603, 4.55397), abs=1e-5)


def test_a_single_clip_has_no_interval():
    assert figure([1.0]) == Figure(value=1.0, low=None, high=None)


def test_a_drop_is_paired_over_clips():
    """Clips differ by 10 dB, the drop is 0.2 in each: its interval is a point."""
    result = drop([20.0, 30.0, 40.0], [19.8, 29.8, 39.8])
    assert (result.value, result.low, result.high) == pytest.approx((0.2, 0.2, 0.2))
    with pytest.raises(ValueError):
        drop([20.0, 30.0], [20.0])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "passed"),
        (-1.0, 0.1, "passed"),
        (0.29, 0.31, "undecided"),
        (0.3, 0.4, "undecided"),
        (0.31, 0.4, "failed"),
        (None, None, "undecided"),
    ],
)
def test_an_interval_across_the_bound_is_undecided(low, high, expected):
    assert at_most(Figure(value=0.2, low=low, high=high), 0.3) == expected


def test_students_t_is_never_too_small():
    stats = pytest.importorskip("scipy.stats", reason="no scipy: see locks/world-model.in")
    for freedom in range(1, 200):
        exact = stats.t.ppf(0.975, freedom)
        assert exact - 0.001 < student_t(freedom) < 1.03 * exact


def test_the_worst_verdict_counts():
    assert worst(["passed", "not decidable", "undecided"]) == "undecided"
    assert worst(["undecided", "failed", "not run"]) == "failed"
    assert worst(["passed", "not decidable"]) == "not decidable"
    assert worst([]) == "passed"
