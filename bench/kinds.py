"""The kinds of benches: command, result and report of each. `python -m bench.kinds` prints the results' JSON schema."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union

import click
from pydantic import Field, TypeAdapter, ValidationError

from bench.accuracy import section as accuracy
from bench.accuracy.command import accuracy_command
from bench.accuracy.result import AccuracyResult
from bench.engine import section as engine
from bench.engine.command import engine_command
from bench.engine.result import EngineResult
from bench.kernels import section as kernels
from bench.kernels.command import kernels_command
from bench.kernels.result import KernelsResult
from bench.record.envelope import SCHEMA_VERSION
from bench.record.run_folder import REQUEST
from bench.report.document import Section
from bench.rollout import section as rollout
from bench.rollout.command import rollout_command
from bench.rollout.result import RolloutResult
from bench.serving import section as serving
from bench.serving.command import serving_command
from bench.serving.result import ServingResult
from bench.static_cache import section as static_cache
from bench.static_cache.command import static_cache_command
from bench.static_cache.result import StaticCacheResult
from flashinfer_patches.errors import Problem


class Kind(NamedTuple):
    """A kind of bench. model: of its results. section: a result's part of a report. command: `fp8-sinks bench KIND`."""

    model: type
    section: Callable[[Any], Section]
    command: click.Command


KINDS = {
    "serving": Kind(ServingResult, serving.section, serving_command),
    "accuracy": Kind(AccuracyResult, accuracy.section, accuracy_command),
    "kernels": Kind(KernelsResult, kernels.section, kernels_command),
    "engine": Kind(EngineResult, engine.section, engine_command),
    "static-cache": Kind(StaticCacheResult, static_cache.section, static_cache_command),
    "rollout": Kind(RolloutResult, rollout.section, rollout_command),
}
Result = Union[tuple(kind.model for kind in KINDS.values())]  # noqa: UP007
RESULT = TypeAdapter(Annotated[Result, Field(discriminator="kind")])
REASONS = {"value_error": "contradicts itself", "json_invalid": "is not JSON"}  # by the type of a validation error


def sections(paths: Sequence[Path]) -> list[Section]:
    """Result files as sections of a report: by kind, the newest first."""
    results = sorted(map(read, paths), key=lambda result: (result.provenance.created, result.id), reverse=True)
    return [kind.section(result) for name, kind in KINDS.items() for result in results if result.kind == name]


def read(path: Path) -> Result:
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
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        reason = REASONS.get(first["type"], f"is not a result of schema {SCHEMA_VERSION}")
        message = f"{path} {reason}: {field}: {first['msg'].removeprefix('Value error, ')}"
        raise Problem("file", message, UNREADABLE_REMEDY) from error


UNREADABLE_REMEDY = (
    "it may be half-written, edited or from another version; run the bench again, with --resume to keep its steps"
)


def file_of(path: Path) -> Path:
    """The result file of a path: itself, or that of a run folder; raises Problem("file") for a run without one."""
    if (path / "result.json").is_file():
        return path / "result.json"
    if (path / REQUEST).is_file():
        message = f"{path} has no result.json: the run did not get that far"
        raise Problem("file", message, f"go on with it, by --resume {path}")
    return path


if __name__ == "__main__":
    print(json.dumps(RESULT.json_schema(), indent=1, sort_keys=True))
