"""The result of kind `serving`: each profile's answers and speed."""

from typing import Literal

from pydantic import Field

from bench.accuracy.result import AccuracyRow
from bench.record.envelope import Envelope, Wiped
from bench.serving.goodput import Slo
from bench.serving.load.rate import Attempt, Rate
from bench.suite import Grid
from vllm_launch.model import Model


class ServingRow(AccuracyRow):
    """A profile's answers and speed. wiped: before the cold start. left_out: what --quick does not measure, as text.

    unrated: the points without a whole repeat. unfinished: the steps of its answers that the run has not executed yet;
    empty in results that did not record it.
    """

    RETIRED = ("completion",)

    wiped: Wiped | None
    rates: list[Rate]
    unrated: list[Attempt] = Field(default_factory=list)
    left_out: list[str] = Field(default_factory=list)
    unfinished: list[str] = Field(default_factory=list)


class ServingResult(Envelope):
    """slo: the limits of goodput; empty where none were given. grid: what the run measures; None in results that did
    not record it. reference_model: the name that an external reference server gives its model.
    """

    kind: Literal["serving"] = "serving"
    model: Model
    slo: Slo = Field(default_factory=dict)
    grid: Grid | None = None
    reference_model: str | None = None
    rows: list[ServingRow]
