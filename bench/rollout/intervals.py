"""Means over clips with their 95% intervals, and verdicts that an interval across a bound leaves open."""

import math
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Literal

from flashinfer_patches.strict import Strict

Verdict = Literal["passed", "not decidable", "undecided", "not run", "failed"]
SEVERITY: tuple[Verdict, ...] = ("passed", "not decidable", "undecided", "not run", "failed")
# Student's t, 97.5%, by degrees of freedom: of 1 to 10, then from each of these numbers on.
T_TABLE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T_LATER = ((120, 1.980), (60, 2.000), (30, 2.042), (20, 2.086), (15, 2.131), (12, 2.179), (10, 2.228))


class Figure(Strict):
    """A mean over clips; low, high: its 95% interval, None of a single clip."""

    value: float
    low: float | None = None
    high: float | None = None


def figure(by_clip: Sequence[float]) -> Figure:
    """The mean of paired values of clips, mean ± t s / sqrt(n)."""
    value, count = mean(by_clip), len(by_clip)
    if count < 2:
        return Figure(value=value)
    error = student_t(count - 1) * stdev(by_clip) / math.sqrt(count)
    return Figure(value=value, low=value - error, high=value + error)


def student_t(freedom: int) -> float:
    """The 97.5% point of Student's t; between two numbers of the table that of the smaller, which is wider."""
    if freedom <= len(T_TABLE):
        return T_TABLE[freedom - 1]
    return next(value for least, value in T_LATER if freedom >= least)


def drop(base: Sequence[float], variant: Sequence[float]) -> Figure:
    """PSNR(base, truth) - PSNR(variant, truth), paired over clips; each in dB, a value a clip."""
    return figure([before - after for before, after in zip(base, variant, strict=True)])


def at_most(value: Figure, bound: float) -> Verdict:
    """Whether a figure is at most `bound`; undecided where its interval crosses it, or is not known."""
    if value.low is None or value.low <= bound < value.high:
        return "undecided"
    return "passed" if value.high <= bound else "failed"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=SEVERITY.index, default="passed")
