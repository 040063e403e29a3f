"""How well a ratio of medians is known, from repeated samples at the points of a grid."""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import median, stdev
from typing import NamedTuple

NOISE_ERRORS = 4  # a difference of fewer standard errors is noise
MAX_NOISE = 0.3  # a ratio with more noise is compared with nothing
FASTER, SLOWER, INSIDE, TOO_NOISY, NOT_KNOWN = VERDICTS = (
    "faster",
    "slower",
    "inside the noise",
    "too noisy to compare",
    "noise not known",
)

Samples = Mapping[Hashable, Sequence[float]]  # point of the grid -> its samples


class Ratio(NamedTuple):
    """A ratio of medians and its noise, NOISE_ERRORS standard errors; infinite where a side has a single sample."""

    value: float
    noise: float


def ratios(samples: Samples, base: Samples) -> dict[Hashable, Ratio]:
    """Median over base's median at each common point, in the order of `samples`.

    A few samples can lie close together by chance, so no spread counts as smaller than the root mean square of all
    points' spreads. Noise alone exceeds this somewhere in fewer than 1 of 100 comparisons, for 6 points of 3 samples
    as for 20 of 10 (simulated, normal noise).
    """
    pairs = {point: (values, base[point]) for point, values in samples.items() if point in base}
    spreads = [_spread(values) for pair in pairs.values() for values in pair]
    typical = math.hypot(*spreads) / math.sqrt(len(spreads) or 1)
    result = {}
    for point, pair in pairs.items():
        value = median(pair[0]) / median(pair[1])
        errors = [max(_spread(values), typical) / math.sqrt(len(values)) for values in pair]
        result[point] = Ratio(value, NOISE_ERRORS * value * math.hypot(*errors))
    return result


def verdict(ratio: Ratio, more_is_faster: bool = True) -> str:
    """Which of VERDICTS holds for the ratio's numerator."""
    if math.isinf(ratio.noise):
        return NOT_KNOWN
    if ratio.noise > MAX_NOISE:
        return TOO_NOISY
    if abs(ratio.value - 1) <= ratio.noise:
        return INSIDE
    return FASTER if (ratio.value > 1) == more_is_faster else SLOWER


def _spread(samples: Sequence[float]) -> float:
    """Standard deviation over the median; infinite for a single sample."""
    return stdev(samples) / median(samples) if len(samples) > 1 else math.inf
