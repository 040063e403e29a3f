"""A run's folder: what it was asked, and its steps, each a file of its own that a resumed run finds done."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bench import provenance
from bench.result import (
    AccuracyResult,
    AccuracyRow,
    Failure,
    Provenance,
    Requested,
    ServingResult,
    Strict,
    write,
    write_text,
)
from vllm_launch import plan as plans
from vllm_launch import preflight, profile
from vllm_launch.errors import Problem
from vllm_launch.plan import Plan
from vllm_launch.profile import Argument, Profile

BEGUN = "provenance.json"  # in a run's folder: the first thing that a run leaves

T = TypeVar("T")
R = TypeVar("R", ServingResult, AccuracyResult)


class Request(Strict):
    """What a run was asked to do; kept in its folder so that --resume does the same."""

    profiles: list[str]
    model: str | None
    overrides: list[str]


@dataclass(frozen=True)
class Run:
    """A run's folder and how it tells what it does: `say` a passing state, `done` a finished step."""

    folder: Path
    request: Request
    say: Callable[[str], None]
    done: Callable[[str], None]


def step(path: Path, kind: type[T], action: Callable[[], T]) -> T:
    """The value that `path` holds, or else what `action` returns, written there."""
    if path.exists():
        return load(path, kind)
    value = action()
    write_text(TypeAdapter(kind).dump_json(value, indent=1).decode() + "\n", path)
    return value


def load(path: Path, kind: type[T]) -> T:
    """A finished step; raises Problem("file") for one that cannot be read."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Problem(
            "file", f"{path} cannot be read as a finished step", f"delete that file, then --resume {path.parent.parent}"
        ) from error


def execute(
    run: Run,
    command: list[str],
    kind: type[R],
    measure: Callable[[Profile], None],
    row: Callable[[Profile, Failure | None], AccuracyRow],
) -> R:
    """Measure the profiles of run.request one after the other; `kind` with a `row` of each is run.folder/result.json.

    It is written too when a measurement fails and its Problem is raised: with the failure, and what was done by then.
    What keeps one of the profiles from running here at all is raised before a run begins: before BEGUN is there.
    """
    chosen = [profile.load(name) for name in run.request.profiles]
    begun = run.folder / BEGUN
    if not begun.exists():
        for one in chosen:
            prepare(run, one)
    source = step(
        begun,
        Provenance,
        lambda: provenance.collect(plan_of(run, chosen[0]).machine, command),
    )
    failures: dict[str, Failure] = {}
    try:
        for one in chosen:
            try:
                measure(one)
            except Problem as problem:
                failures[one.name] = Failure(step=one.name, message=provenance.redact(problem.message))
                raise
    finally:
        result = kind(
            id=run.folder.name,
            provenance=source,
            model=provenance.redacted_model(plan_of(run, chosen[0]).model),
            rows=[row(one, failures.get(one.name)) for one in chosen],
        )
        write(result, run.folder / "result.json")
    return result


def plan_of(run: Run, one: Profile, extra: dict[str, Argument] | None = None) -> Plan:
    """A plan on a free loopback port, with this run's caches. extra: vLLM arguments beside the profile's."""
    return plans.make(
        one,
        port=_free_port(),
        cache_root=run.folder / "cache",
        model_path=run.request.model,
        overrides=run.request.overrides,
        extra=extra,
    )


def prepare(run: Run, one: Profile, extra: dict[str, Argument] | None = None) -> tuple[Plan, Path]:
    """A plan that has passed preflight, and the profile's folder, which is made. Raises the first Problem."""
    plan, folder = plan_of(run, one, extra), run.folder / one.name
    one.check_measurable(plan.model.name)
    found = preflight.problems(plan, folder)
    if found:
        raise found[0]
    for needed in (folder, Path(plan.cache_root)):
        needed.mkdir(parents=True, exist_ok=True)
    return plan, folder


def said(run: Run, one: Profile) -> Callable[[str], None]:
    """run.say with the profile's name in front."""
    return lambda line: run.say(f"{one.name}: {line}")


def requested(plan: Plan) -> Requested:
    """What a result records of a plan."""
    return Requested(
        kv_cache_dtype=plan.kv_cache_dtype,
        attention_backends=plan.expected_backends,
        arguments=plan.arguments,
        command=provenance.redact_all(plan.command),
        environment=provenance.redact_all(plan.environment),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
