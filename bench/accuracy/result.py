"""The result of kind `accuracy`: each profile's answers."""

from typing import Literal

from pydantic import Field

from bench.accuracy.verdicts import AccuracyRecord, GreedyMatch
from bench.record.envelope import Envelope
from bench.servers.result import FailedStep, Requested, Start
from flashinfer_patches.strict import Record
from vllm_launch.model import Model
from vllm_launch.profile import Decoder
from vllm_launch.resolved import Resolved


class AccuracyRow(Record):
    """A profile's answers; what was not measured is absent, and the reason is in `failures` or `unavailable`.

    decoder: who computes decode attention, as planned; stock in results that did not record it. decoder, requested:
    None for an external server: its settings, caches and starts are not known.
    reference_kv_capacity_tokens: of the reference profile in the same run, which may have no row. unavailable:
    measurements that the server does not offer, as text with the reason.
    """

    profile: str
    description: str
    decoder: Decoder | None = "stock"
    requested: Requested | None
    resolved: Resolved | None
    reference_kv_capacity_tokens: int | None = None
    starts: list[Start] = Field(default_factory=list)
    greedy: list[GreedyMatch]
    accuracy: AccuracyRecord | None = None
    unavailable: list[str] = Field(default_factory=list)
    failures: list[FailedStep]


class AccuracyResult(Envelope):
    kind: Literal["accuracy"] = "accuracy"
    model: Model
    rows: list[AccuracyRow]
