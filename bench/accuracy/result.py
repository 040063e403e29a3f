"""The result of kind `accuracy`: each profile's answers."""

from typing import Literal

from pydantic import Field

from bench.accuracy.verdicts import AccuracyRecord, GreedyMatch
from bench.record.envelope import SCHEMA_VERSION
from bench.servers.result import FailedStep, Requested, Start
from flashinfer_patches.strict import Record, Strict
from vllm_launch.model import Model
from vllm_launch.provenance import Provenance
from vllm_launch.resolved import Resolved


class AccuracyRow(Record):
    """A profile's answers; what was not measured is absent, and the reason is in `failures`.

    reference_kv_capacity_tokens: of the reference profile in the same run, which may have no row.
    """

    profile: str
    description: str
    requested: Requested
    resolved: Resolved | None
    reference_kv_capacity_tokens: int | None = None
    starts: list[Start] = Field(default_factory=list)
    greedy: list[GreedyMatch]
    accuracy: AccuracyRecord | None = None
    failures: list[FailedStep]


class AccuracyResult(Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["accuracy"] = "accuracy"
    id: str
    provenance: Provenance
    model: Model
    rows: list[AccuracyRow]
