"""Greedy answers, and how two of them to one prompt differ: not at all, by a tie, or by more.

A tie: both engines have both tokens among the most likely, and neither prefers its own by more than a bound; nearly all
ties are within a smaller one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TOP = 10  # log-probabilities of a position, beside the sampled token's
SHOWN = 12  # differences that are listed
USUAL_SHARE = 0.95


class TieBounds(NamedTuple):
    """Bounds on the gaps of ties, in nats: of USUAL_SHARE of them, and of the largest."""

    usual: float
    largest: float


# Largest on a CPU: in BF16 0.125, against stock vLLM; in FP8 0.31 against the same engine, 1.9 against BF16. In FP8 a
# prompt is read unrounded in its own chunk only: another chunking is another rounding. Those of int8 lie between, set
# before the first run.
TIE_BOUNDS = {
    "bf16": TieBounds(0.2, 0.4),
    "e4m3": TieBounds(1.0, 3.0),
    "int8": TieBounds(0.3, 0.6),
    "int8-static": TieBounds(0.35, 0.7),
}


class Answer(NamedTuple):
    """Generated tokens, and for each position the most likely tokens with their log-probabilities, its own too."""

    tokens: list[int]
    top: list[dict[int, float]]

    def cut(self, length: int) -> "Answer":
        return Answer(self.tokens[:length], self.top[:length])

    def logprobs(self) -> list[float]:
        return [top[token] for token, top in zip(self.tokens, self.top, strict=True)]

    def to_json(self) -> list:
        return [self.tokens, [list(top.items()) for top in self.top]]

    @classmethod
    def from_json(cls, content: list) -> "Answer":
        return cls(content[0], [{token: value for token, value in top} for top in content[1]])


class Difference(NamedTuple):
    """Where two answers part. tokens: of the candidate and the reference; logprobs: of both, in each of the engines.

    A token that is not among an engine's TOP has -inf.
    """

    position: int
    tokens: tuple[int, int]
    candidate: tuple[float, float]
    reference: tuple[float, float]

    @property
    def gap(self) -> float:
        """By how much the engine that is surer prefers its own token; in nats."""
        gaps = (self.candidate[0] - self.candidate[1], self.reference[1] - self.reference[0])
        return math.nan if any(map(math.isnan, gaps)) else max(gaps)

    def __str__(self) -> str:
        logprobs = ["/".join(f"{value:.3f}" for value in pair) for pair in (self.candidate, self.reference)]
        tokens = f"position {self.position}, tokens {self.tokens[0]}/{self.tokens[1]}"
        return f"{tokens}: log p {logprobs[0]}, reference {logprobs[1]}"


def first_difference(candidate: Answer, reference: Answer) -> Difference | None:
    """Where the answers part, as far as both go."""
    for position, tokens in enumerate(zip(candidate.tokens, reference.tokens, strict=False)):
        if tokens[0] != tokens[1]:
            tops = candidate.top[position], reference.top[position]
            return Difference(position, tokens, *(tuple(top.get(token, -math.inf) for token in tokens) for top in tops))
    return None


def distances(candidate: Answer, reference: Answer) -> list[float]:
    """|Δ log p| of the tokens up to where the answers part."""
    parted = first_difference(candidate, reference)
    length = parted.position if parted else min(len(candidate.tokens), len(reference.tokens))
    sides = candidate.cut(length).logprobs(), reference.cut(length).logprobs()
    return [abs(a - b) for a, b in zip(*sides, strict=True)]


def is_finite(answers: Iterable[Answer]) -> bool:
    return all(math.isfinite(value) for answer in answers for top in answer.top for value in top.values())


def judge(differences: Sequence[tuple[str, Difference]], bounds: TieBounds) -> tuple[bool, str]:
    """Whether all of the named differences are ties, and a line with the largest of them below it."""
    largest = sorted(differences, key=lambda entry: (not math.isnan(entry[1].gap), -entry[1].gap))
    if not largest:
        return True, "none part"
    gaps = [difference.gap for _, difference in largest]
    usual = gaps[round((1 - USUAL_SHARE) * (len(gaps) - 1))]
    passes = all(gap <= bounds.largest for gap in gaps) and usual <= bounds.usual
    summary = f"{len(gaps)} part, gaps {USUAL_SHARE:.0%} {usual:.3f} (<= {bounds.usual}), "
    summary += f"largest {gaps[0]:.3f} (<= {bounds.largest})"
    return passes, "\n".join([summary, *(f"     {name}: {difference}" for name, difference in largest[:SHOWN])])


def mean(values: Sequence[float]) -> float:
    """NaN of no values, which is within no bound."""
    return sum(values) / len(values) if values else math.nan
