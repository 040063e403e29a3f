"""Greedy answers, and how two of them to one prompt differ: not at all, by a tie, or by more.

A tie: both engines have both tokens among the most likely, and neither prefers its own by more than a bound. A few
differences may be larger: where two experts of a layer are about equally likely, any rounding can choose the other one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TOP = 20  # log-probabilities of a position, beside the sampled token's
SHOWN = 12  # differences that are listed
# Gaps of ties, in nats. Largest on a CPU but for swapped experts: 0.125 in BF16, against stock vLLM, and against BF16
# 0.0625 in int8, 0.25 in int8-static, 0.5 in FP8. A prompt's own chunk reads its keys and values unrounded: another
# chunking is another rounding, at most as far off as the format is from BF16.
TIE_BOUNDS = {"bf16": 0.2, "int8": 0.3, "int8-static": 0.35, "e4m3": 1.0}
# Gaps of swapped experts do not depend on the format. Measured in FP32 on the CPU, on 12,288 tokens of held-out text:
# of 1,095 swaps of two experts whose router logits are within 0.05, 93 change the most likely token, with gaps of
# median 0.48, 95% 1.6, largest 4.6. Rounding makes ties and swaps at rates that are both proportional to its size.
SWAP_BOUND = 5.0
SWAPS = 0.1  # of the differences, at most (on an H200 2% in soaks, 2 of 20 in tiny_model); one is always allowed


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


def judge(differences: Sequence[tuple[str, Difference]], bound: float) -> tuple[bool, str]:
    """Whether the named differences are ties and few swaps of experts, and a line with the largest of them below it."""
    passes, text = judge_gaps([difference.gap for _, difference in differences], bound)
    largest = sorted(differences, key=lambda entry: (not math.isnan(entry[1].gap), -entry[1].gap))[:SHOWN]
    return passes, "\n".join([f"{len(differences)} part{text}", *(f"     {name}: {entry}" for name, entry in largest)])


def judge_gaps(gaps: Sequence[float], bound: float) -> tuple[bool, str]:
    """Whether no more gaps than the swaps of experts are over a bound, and none over SWAP_BOUND."""
    if not gaps:
        return True, ""
    swaps = max(1, int(SWAPS * len(gaps)))
    over = sum(not gap <= bound for gap in gaps)
    passes = over <= swaps and all(gap <= SWAP_BOUND for gap in gaps)
    return passes, f", {over} over {bound} (<= {swaps}), largest {max(gaps):.3f} (<= {SWAP_BOUND})"


def mean(values: Sequence[float]) -> float:
    """NaN of no values, which is within no bound."""
    return sum(values) / len(values) if values else math.nan
