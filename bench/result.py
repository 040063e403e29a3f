"""A Result: what one run measured, on what, with what command. The only thing that reports are made from."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bench.kernels.result import KernelsResult
from bench.record import SCHEMA_VERSION, NotNegative, Positive, Provenance, Strict, Wiped
from bench.verdicts import AccuracyRecord, GreedyMatch
from vllm_launch.errors import Problem
from vllm_launch.model import Model
from vllm_launch.profile import Argument
from vllm_launch.resolved import Resolved

Samples = Annotated[list[Positive], Field(min_length=1)]


class Requested(Strict):
    """What was asked of vLLM: the server's command line and the environment added to the caller's, as executed.

    command: empty where no server was started.
    """

    kv_cache_dtype: str
    attention_backends: list[str]
    arguments: dict[str, Argument]
    command: list[str]
    environment: dict[str, str]


RESOLVED_FIGURES = ("kv_capacity_tokens", "max_concurrency", "kv_cache_gib", "weights_gib")  # no settings


class Start(Strict):
    """One start of the server, in seconds. cold: this run's caches were empty; scored: with our token forcer, in a
    serving run after a cold start, in an accuracy run the first one on its caches.

    command: as it was executed; empty in results that did not record it. load_average: of the machine over the minute
    before the start. cached_files: in the run's caches after the first token; where a cold start leaves none, a warm
    one would find the same and is not made.
    """

    cache: Literal["cold", "warm", "scored"]
    start_s: Positive
    first_token_s: Positive
    command: list[str] = Field(default_factory=list)
    load_average: NotNegative | None = None
    cached_files: Annotated[int, Field(ge=0)] | None = None


class Rate(Strict):
    """llama-benchy's samples at one point of the grid; token counts, one sample per repeat.

    decode_tok_s and prefill_tok_s sum over the requests at once; first_token_ms is the time to the first token.
    load_average: of the machine over the minute at whose end the point was measured.
    """

    depth: int
    prompt: int
    output: int
    concurrency: int
    decode_tok_s: Samples
    prefill_tok_s: Samples
    first_token_ms: Samples
    load_average: NotNegative | None = None

    @property
    def context(self) -> int:
        """Tokens in the KV cache halfway through the output."""
        return self.depth + self.prompt + self.output // 2


class Failure(Strict):
    step: str
    message: str


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
REQUEST = "request.json"  # in a run folder


def file_of(path: Path) -> Path:
    """The result file that a path names: itself, or that of a run folder; raises Problem("file") for one without."""
    if (path / "result.json").is_file():
        return path / "result.json"
    if (path / REQUEST).is_file():
        what = f"{path} has no result.json: the run did not get that far"
        raise Problem("file", what, f"go on with it, by --resume {path}")
    return path


def read(path: Path) -> ServingResult | AccuracyResult | KernelsResult:
    """Read a result file of any kind, or that of a run folder.

    Raises Problem("file") for one that is missing, half-written, of another schema or that contradicts itself.
    """
    path = file_of(path)
    remedy = "name a result file, or a run folder that has one"
    if path.is_dir():
        raise Problem("file", f"{path} has no result.json", remedy)
    try:
        return RESULT.validate_json(path.read_bytes())
    except OSError as error:
        raise Problem("file", f"cannot read {path}: {error.strerror}", remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        contradiction = first["type"] == "value_error"
        wrong = "contradicts itself" if contradiction else f"is not a result of schema {SCHEMA_VERSION}"
        raise Problem(
            "file",
            f"{path} {wrong}: {where}: {first['msg'].removeprefix('Value error, ')}",
            "it may be half-written, edited or from another version; run the bench again, with --resume to keep its"
            " steps",
        ) from error


def write(model: BaseModel, path: Path) -> None:
    """Write any of our records as JSON, whole or not at all."""
    write_text(model.model_dump_json(indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file under a temporary name, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
