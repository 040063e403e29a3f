"""A Result: what one run measured, on what, with what command. The only thing that reports are made from."""

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bench.kernels.result import KernelsResult
from bench.record import SCHEMA_VERSION, Provenance, Strict, Wiped
from vllm_launch.errors import Problem
from vllm_launch.model import Model
from vllm_launch.profile import Argument
from vllm_launch.resolved import Resolved


class Requested(Strict):
    """What was asked of vLLM: the server's command line and the environment added to the caller's, as executed.

    command: empty where no server was started.
    """

    kv_cache_dtype: str
    attention_backends: list[str]
    arguments: dict[str, Argument]
    command: list[str]
    environment: dict[str, str]


class Start(Strict):
    """One start of the server. cold: this run's caches were empty; scored: warm, with our token forcer. Seconds.

    command: as it was executed; empty in results that did not record it. load_average: of the machine over the minute
    before the start.
    """

    cache: Literal["cold", "warm", "scored"]
    start_s: float
    first_token_s: float
    command: list[str] = Field(default_factory=list)
    load_average: float | None = None


class Rate(Strict):
    """llama-benchy's samples at one point of the grid; token counts, one sample per repeat.

    decode_tok_s and prefill_tok_s sum over the requests at once; first_token_ms is the time to the first token.
    load_average: of the machine over the minute at whose end the point was measured.
    """

    depth: int
    prompt: int
    output: int
    concurrency: int
    decode_tok_s: list[float]
    prefill_tok_s: list[float]
    first_token_ms: list[float]
    load_average: float | None = None

    @property
    def context(self) -> int:
        """Tokens in the KV cache halfway through the output."""
        return self.depth + self.prompt + self.output // 2


class GreedyMatch(Strict):
    """One prompt's greedy answer against the reference profile's, position by position.

    margin: smallest gap, over the reference's positions, between its best and second-best log-probability.
    missing: positions that the shorter of the two answers lacks; a match of less than all has failed.
    """

    prompt: str
    reference: str
    text: str
    reference_text: str
    matched: int
    tokens: int
    missing: int = 0
    distinct: int
    margin: float
    passed: bool


class Failure(Strict):
    step: str
    message: str


class Figure(Strict):
    """A value and its 95% interval; no interval where the texts are too few for one."""

    value: float
    low: float | None
    high: float | None


class Agreement(Strict):
    """How a profile's log-probabilities of given tokens differ from the reference profile's (bench/metrics.py).

    delta: log p here minus log p there of the token that was given, nats. kl: nats a token. top1: share of
    positions with the same most likely token. perplexity_ratio: this profile's perplexity over the reference's.
    """

    texts: int
    tokens: int
    mean_abs_delta: Figure
    p99_abs_delta: Figure
    kl: Figure
    top1: Figure
    perplexity_ratio: Figure


class AtContext(Strict):
    """Agreement after `context` tokens of prompt; prefill is absent where it was not asked for."""

    context: int
    decode: Agreement
    prefill: Agreement | None


class SinkCheck(Strict):
    """The server's prompt log-probabilities against transformers in FP32 with true and with wrong sinks.

    mean_abs_delta: nats, by what was done to the sinks (`true` for nothing). bound: the most that `true` may
    have; factor: how many times farther the nearest wrong one must be. reason: why it did not run.
    """

    status: Literal["passed", "FAILED", "not judged", "not run"]
    reason: str | None
    tokens: int
    mean_abs_delta: dict[str, float]
    bound: float | None
    factor: float | None


class Gate(Strict):
    """One figure against its bound. context: None for all of them. bound and passed: None if it is not judged."""

    path: Literal["decode", "prefill", "paths"]
    context: int | None
    figure: Literal["mean_abs_delta", "p99_abs_delta", "kl", "top1", "perplexity_ratio"]
    value: float
    bound: float | None
    passed: bool | None


class AccuracyRecord(Strict):
    """A profile's answers against the reference profile's; the reference's own record compares it with itself.

    paths: its decode against its own prefill, where both were scored; a healthy server's differ by noise alone.
    judged_at: when the gates were computed again from the kept scores, after the run; None for the run's own verdict.
    """

    reference: str
    text: Literal["heldout", "book"]
    decode: Agreement
    prefill: Agreement | None
    paths: Agreement | None
    contexts: list[AtContext]
    gates: list[Gate]
    sinks: SinkCheck | None
    judged_at: datetime | None = None

    @property
    def failed_gates(self) -> list[Gate]:
        return [gate for gate in self.gates if gate.passed is False]

    @property
    def passed(self) -> bool | None:
        """False if any gate or the sink check failed; None if no gate of decode is judged."""
        if self.failed_gates or (self.sinks and self.sinks.status == "FAILED"):
            return False
        judged = {gate.figure for gate in self.gates if gate.path == "decode" and gate.passed}
        return True if judged else None


class AccuracyRow(Strict):
    """What one profile answers; what failed or was not reached is absent, and in `failures`."""

    profile: str
    description: str
    requested: Requested
    resolved: Resolved | None
    starts: list[Start] = Field(default_factory=list)
    greedy: list[GreedyMatch]
    accuracy: AccuracyRecord | None = None
    failures: list[Failure]


class ServingRow(AccuracyRow):
    """All that was measured with one profile."""

    wiped: Wiped | None
    completion: str | None
    rates: list[Rate]


class ServingResult(Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["serving"] = "serving"
    id: str
    provenance: Provenance
    model: Model
    rows: list[ServingRow]


class AccuracyResult(Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["accuracy"] = "accuracy"
    id: str
    provenance: Provenance
    model: Model
    rows: list[AccuracyRow]


Result = Annotated[ServingResult | AccuracyResult | KernelsResult, Field(discriminator="kind")]
RESULT = TypeAdapter(Result)


def file_of(path: Path) -> Path:
    """The result file that a path names: itself, or that of a run folder."""
    return path / "result.json" if (path / "result.json").is_file() else path


def read(path: Path) -> ServingResult | AccuracyResult | KernelsResult:
    """Read a result file of any kind, or that of a run folder.

    Raises Problem("file") for one that is missing, half-written or of another schema.
    """
    path = file_of(path)
    try:
        return RESULT.validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = "name a result file, or a run folder that has one"
        raise Problem("file", f"cannot read {path}: {error.strerror}", remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise Problem(
            "file",
            f"{path} is not a result of schema {SCHEMA_VERSION}: {where}: {first['msg']}",
            "it may be half-written or from another version; run the bench again, with --resume to keep its steps",
        ) from error


def write(model: BaseModel, path: Path) -> None:
    """Write any of our records as JSON, whole or not at all."""
    write_text(model.model_dump_json(indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file under a temporary name, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
