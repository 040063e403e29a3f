"""Figures of a profile's answers, and the verdicts on them. A verdict that its figures contradict raises."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.suite import RatioFigure
from flashinfer_patches.strict import Count, NotNegative, Positive, Strict

FigureName = Literal["mean_abs_delta", "p99_abs_delta", "kl", "top1", "perplexity_ratio"]
SinkStatus = Literal["passed", "FAILED", "not judged", "not run"]
RatioStatus = Literal["passed", "FAILED", "undecided"]
RelativeStatus = Literal["passed", "FAILED", "undecided", "not judged"]
TRUE_SINKS = "true"  # among the kinds of sinks in a sink check; every other kind is wrong


def greedy_passes(
    matched: int, tokens: int, distinct: int, min_match: float, min_distinct: int, missing: int = 0
) -> bool:
    """Whether more than min_match of the tokens match, none is missing, and there are at least min_distinct of them."""
    return not missing and matched > min_match * tokens and distinct >= min_distinct


def holds(figure: FigureName, value: float, bound: float) -> bool:
    """Whether a figure of an Agreement is within its bound; NaN never is."""
    if figure == "top1":
        return value >= bound
    if figure == "perplexity_ratio":
        return 1 / bound <= value <= bound
    return value <= bound


def sink_status(distances: dict[str, float], bound: float | None, factor: float | None) -> SinkStatus:
    """Passed if the true sinks are within `bound` and the nearest wrong ones `factor` times that far.

    distances: mean |Δ log p| (nats) of TRUE_SINKS and of at least one wrong kind.
    """
    near = distances[TRUE_SINKS]
    far = min(value for name, value in distances.items() if name != TRUE_SINKS)
    passed = [None if bound is None else near <= bound, None if factor is None else far >= factor * near]
    return "FAILED" if False in passed else "not judged" if None in passed else "passed"


def ratio_status(value: float, yardstick: float, noise: float, bound: float, max_noise: float) -> RatioStatus:
    """Passed if `value` is at most bound times `yardstick`; undecided unless `noise` is under max_noise times it."""
    if yardstick <= 0 or noise >= max_noise * yardstick:
        return "undecided"
    return "passed" if value <= bound * yardstick else "FAILED"


def relative_status(statuses: Sequence[RatioStatus]) -> RatioStatus:
    """Passed if one ratio passed, else FAILED if one failed; undecided where the noise leaves none to judge."""
    return next((status for status in ("passed", "FAILED") if status in statuses), "undecided")


class GreedyMatch(Strict):
    """One prompt's greedy answer against the reference profile's, position by position.

    margin: smallest gap, over the reference's positions, between its best and second-best log-probability.
    missing: positions that the shorter of the two answers lacks; a match of less than all has failed.
    passed: greedy_passes() of min_match and min_distinct, whose defaults are those of results that lack them.
    """

    prompt: str
    reference: str
    text: str
    reference_text: str
    matched: Annotated[int, Field(ge=0)]
    tokens: Count
    missing: Annotated[int, Field(ge=0)] = 0
    distinct: Annotated[int, Field(ge=0)]
    margin: NotNegative
    min_match: Annotated[float, Field(ge=0, lt=1)] = 0.95
    min_distinct: Count = 12
    passed: bool

    @model_validator(mode="after")
    def _passed_by_its_figures(self):
        if self.matched > self.tokens:
            raise ValueError(f"{self.matched} of {self.tokens} tokens are equal")
        figures = self.matched, self.tokens, self.distinct, self.min_match, self.min_distinct, self.missing
        passed = greedy_passes(*figures)
        if self.passed is not passed:
            counts = f"{self.matched} of {self.tokens} tokens equal, {self.distinct} distinct"
            needed = f"more than {self.min_match:g} of them and at least {self.min_distinct} distinct"
            raise ValueError(f"passed is {self.passed}, but {counts}; a pass takes {needed}")
        return self


class Figure(Strict):
    """A value and its 95% interval; no interval where the texts are too few for one."""

    value: float
    low: float | None
    high: float | None

    @model_validator(mode="after")
    def _low_to_high(self):
        ends = (self.low, self.high)
        if ends != (None, None) and (None in ends or self.low > self.high):
            raise ValueError(f"an interval from {self.low} to {self.high}")
        return self


class Agreement(Strict):
    """How a profile's log-probabilities of given tokens differ from the reference profile's (metrics.py).

    delta: log p here minus log p there of the token that was given, nats. kl: nats a token. top1: share of
    positions with the same most likely token. perplexity_ratio: this profile's perplexity over the reference's.
    """

    texts: Count
    tokens: Count
    mean_abs_delta: Figure
    p99_abs_delta: Figure
    kl: Figure
    top1: Figure
    perplexity_ratio: Figure

    @model_validator(mode="after")
    def _in_range(self):
        delta, p99, top1 = self.mean_abs_delta.value, self.p99_abs_delta.value, self.top1.value
        if delta < 0 or p99 < 0 or not 0 <= top1 <= 1 or self.perplexity_ratio.value <= 0:
            raise ValueError(
                "expected distances of at least 0, top1 from 0 to 1 and a positive perplexity_ratio, got"
                f" {delta:g}, {p99:g}, {top1:g} and {self.perplexity_ratio.value:g}"
            )
        return self


class AtContext(Strict):
    """Agreement after `context` tokens of prompt; None where the path was not scored."""

    context: int
    decode: Agreement | None
    prefill: Agreement | None


class SinkCheck(Strict):
    """The server's prompt log-probabilities against transformers in FP32 with true and with wrong sinks.

    mean_abs_delta: nats, by kind of sinks (`true`: unchanged). bound: maximum for `true`; factor: how many times
    farther the nearest wrong kind must be. reason: why there are no figures.
    """

    status: SinkStatus
    reason: str | None
    tokens: int
    mean_abs_delta: dict[str, NotNegative]
    bound: Positive | None
    factor: Positive | None

    @model_validator(mode="after")
    def _status_by_its_figures(self):
        distances = self.mean_abs_delta
        if self.reason is not None:
            if distances or self.status not in ("not run", "FAILED"):
                raise ValueError(f"status is {self.status}, with figures {distances} beside the reason for none")
            return self
        if TRUE_SINKS not in distances or len(distances) < 2:
            raise ValueError(f"no reason, and not the distances of the true and of wrong sinks: {distances}")
        status = sink_status(distances, self.bound, self.factor)
        if self.status != status:
            raise ValueError(f"status is {self.status}, but its distances, bound and factor make it {status}")
        return self


class Gate(Strict):
    """One figure against its bound. context: None for all contexts. bound and passed: None if it is not judged."""

    path: Literal["decode", "prefill", "paths"]
    context: int | None
    figure: FigureName
    value: float
    bound: Positive | None
    passed: bool | None

    @model_validator(mode="after")
    def _passed_by_its_figures(self):
        passed = None if self.bound is None else holds(self.figure, self.value, self.bound)
        if self.passed is not passed:
            against = f"{self.figure} {self.value:g} against the bound {self.bound}"
            raise ValueError(f"passed is {self.passed}, but {against} makes it {passed}")
        return self


class Ratio(Strict):
    """A decode figure of a profile against the same figure of another; both are distances from the reference.

    noise: the reference's distance from itself, scored again in another order.
    """

    figure: RatioFigure
    value: float
    yardstick: float
    noise: float
    bound: Positive
    max_noise: Positive
    status: RatioStatus

    @model_validator(mode="after")
    def _status_by_its_figures(self):
        status = ratio_status(self.value, self.yardstick, self.noise, self.bound, self.max_noise)
        if self.status != status:
            against = f"{self.figure} {self.value:g} over {self.yardstick:g} with the noise {self.noise:g}"
            raise ValueError(f"status is {self.status}, but {against} makes it {status}")
        return self


class RelativeGate(Strict):
    """A profile's decode figures over those of `profile`. reason: why there are none."""

    profile: str
    status: RelativeStatus
    reason: str | None
    ratios: list[Ratio]

    @model_validator(mode="after")
    def _status_by_its_ratios(self):
        if self.reason is not None and self.ratios:
            raise ValueError("ratios beside the reason for none")
        status = "not judged" if self.reason is not None else relative_status([each.status for each in self.ratios])
        if self.status != status:
            raise ValueError(f"status is {self.status}, but its ratios make it {status}")
        return self


class AccuracyRecord(Strict):
    """A profile's answers against the reference profile's; the reference's own record compares it with itself.

    decode, prefill: None where the path was not scored: an external server may lack forced decode. paths: decode
    against the same server's prefill, where both were scored; on a healthy server they differ by noise alone.
    relative: the gate over another profile's figures; None where the suite has none.
    judged_at: when the saved scores were judged again, after the run; None for the run's own verdict.
    """

    reference: str
    text: Literal["heldout", "book"]
    decode: Agreement | None
    prefill: Agreement | None
    paths: Agreement | None
    contexts: Annotated[list[AtContext], Field(min_length=1)]
    gates: list[Gate]
    sinks: SinkCheck | None
    relative: RelativeGate | None = None
    judged_at: datetime | None = None

    @property
    def failed_gates(self) -> list[Gate]:
        return [gate for gate in self.gates if gate.passed is False]

    @property
    def main_path(self) -> Literal["decode", "prefill"]:
        """The path that stands for the record: decode, where it was scored."""
        return "decode" if self.decode else "prefill"

    @property
    def passed(self) -> bool | None:
        """False if a gate or the sink check failed; None if no gate of the main path is judged, or one is undecided."""
        checks = [check.status for check in (self.sinks, self.relative) if check]
        if self.failed_gates or "FAILED" in checks:
            return False
        if "undecided" in checks:
            return None
        passed = any(gate.passed for gate in self.gates if gate.path == self.main_path)
        return True if passed or (self.relative and self.relative.status == "passed") else None

    @model_validator(mode="after")
    def _has_a_path(self):
        if not (self.decode or self.prefill):
            raise ValueError("neither decode nor prefill was scored")
        return self

    @model_validator(mode="after")
    def _gates_judge_these_figures(self):
        for ratio in self.relative.ratios if self.relative else ():
            value = self.decode and getattr(self.decode, ratio.figure).value
            if value != ratio.value:
                raise ValueError(f"a ratio has {ratio.figure} {ratio.value:g} in decode, the record {value}")
        by_context = {entry.context: entry for entry in self.contexts}
        for gate in self.gates:
            agreement = getattr(self if gate.context is None else by_context.get(gate.context), gate.path, None)
            value = agreement and getattr(agreement, gate.figure).value
            if value != gate.value:
                context = "all contexts" if gate.context is None else f"context {gate.context}"
                message = f"a gate has {gate.path} {gate.figure} {gate.value:g} at {context}, the record {value}"
                raise ValueError(message)
        return self
