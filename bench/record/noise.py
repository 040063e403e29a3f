"""How well a ratio of rates is known, and the words for it: the one place for both."""

import math
from collections import Counter
from collections.abc import Callable
from statistics import median, stdev

from bench.serving.result import Rate

NOISE_ERRORS = 4  # a difference of fewer standard errors is called noise
MOST_NOISE = 0.3  # a ratio with more tells nothing, and is not called anything else
NOT_KNOWN, TOO_NOISY, INSIDE = "noise not known", "too noisy to compare", "inside the noise"
FASTER, SLOWER = "faster", "slower"

Point = tuple[int, int, int, int]
Ratio = tuple[float, float]  # the ratio and its noise


def point(rate: Rate) -> Point:
    """Where on the grid a rate was measured: context, output, concurrency; depth tells contexts apart."""
    return rate.context, rate.output, rate.concurrency, rate.depth


def ratios(rates: list[Rate], base: list[Rate]) -> dict[Point, Ratio]:
    """Median decode rate over base's at each common point, and its noise: NOISE_ERRORS standard errors.

    A few samples can lie close together by chance, so none count as closer than all points' samples do on
    average (root mean square). Noise alone goes beyond this somewhere in fewer than 1 of 100 comparisons, for
    6 points of 3 samples as for 20 of 10 (simulated, normal noise). Single samples have infinite noise.
    """
    of_base = {point(rate): rate for rate in base}
    pairs = {point(rate): (rate, of_base[point(rate)]) for rate in rates if point(rate) in of_base}
    spreads = [_spread(rate) for pair in pairs.values() for rate in pair]
    typical = math.hypot(*spreads) / math.sqrt(len(spreads) or 1)
    found = {}
    for at, pair in pairs.items():
        value = median(pair[0].decode_tok_s) / median(pair[1].decode_tok_s)
        errors = [max(_spread(rate), typical) / math.sqrt(len(rate.decode_tok_s)) for rate in pair]
        found[at] = value, NOISE_ERRORS * value * math.hypot(*errors)
    return found


def verdict(ratio: float, noise: float, more_is_faster: bool = True) -> str:
    """What a ratio says of its numerator."""
    if math.isinf(noise):
        return NOT_KNOWN
    if noise > MOST_NOISE:
        return TOO_NOISY
    if abs(ratio - 1) <= noise:
        return INSIDE
    return FASTER if (ratio > 1) == more_is_faster else SLOWER


def compared(found: list[Ratio], base: str, more_is_faster: bool = True) -> str:
    """The lowest and the highest ratio to `base` with their noise, and how many points say what."""
    counts = Counter(verdict(*one, more_is_faster) for one in found)
    points = "1 point" if len(found) == 1 else f"{len(found)} points"
    if len(counts) == 1:
        said = next(iter(counts))
    else:
        said = ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=_WORDS.index))
    return f"{span(found, lambda one: with_noise(*one))} {base}'s ({points}: {said})"


def times(value: float) -> str:
    """A ratio: 1.12x, and 1.004x where two digits would hide the difference."""
    return f"{value:.3f}x" if abs(value - 1) < 0.0095 else f"{value:.2f}x"


def with_noise(value: float, noise: float) -> str:
    """A ratio and its noise, `1.02x ± 0.03`, without the noise where that is infinite."""
    if math.isinf(noise):
        return times(value)
    digits = 2 if noise >= 0.00995 else 3
    return f"{value:.{digits}f}x ± {noise:.{digits}f}"


def cell(value: float, noise: float) -> str:
    """with_noise() for a table in Markdown: a difference beyond the noise in bold, and said if too noisy."""
    text, said = with_noise(value, noise), verdict(value, noise)
    if said == TOO_NOISY:
        return f"{text}, {TOO_NOISY}"
    ratio, sign, rest = text.partition(" ± ")
    return f"**{ratio}**{sign}{rest}" if said in (FASTER, SLOWER) else text


def span(values: list, written: Callable[..., str]) -> str:
    """The lowest to the highest; only the one where both are written alike."""
    lowest, highest = written(min(values)), written(max(values))
    return lowest if lowest == highest else f"{lowest} to {highest}"


_WORDS = (FASTER, SLOWER, INSIDE, TOO_NOISY, NOT_KNOWN)


def _spread(rate: Rate) -> float:
    """Standard deviation of the decode rate over its median; infinite for a single sample."""
    samples = rate.decode_tok_s
    return stdev(samples) / median(samples) if len(samples) > 1 else math.inf
