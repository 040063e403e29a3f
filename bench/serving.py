"""The main job: serve each profile cold and warm, measure it, compare its answers, write one Result.

Every step writes its own JSON into the run folder, so that a run which was interrupted resumes, and what was
measured before a failure is kept.
"""

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bench import benchy, completion, provenance
from bench.completion import Answer
from bench.result import (
    Failure,
    GreedyMatch,
    Provenance,
    Rate,
    Requested,
    ServingResult,
    ServingRow,
    Start,
    Strict,
    Wiped,
    write,
    write_text,
)
from vllm_launch import plan as plans
from vllm_launch import preflight, profile, server
from vllm_launch.errors import Problem
from vllm_launch.model import Model
from vllm_launch.plan import Plan
from vllm_launch.profile import Profile
from vllm_launch.resolved import Resolved
from vllm_launch.server import Server

T = TypeVar("T")


class Request(Strict):
    """What a run was asked to do; kept in its folder so that --resume does the same."""

    profiles: list[str]
    model: str | None
    overrides: list[str]


class Begin(Strict):
    """A start of the server, with what it resolved and what was wiped before it."""

    start: Start
    resolved: Resolved
    wiped: Wiped | None


@dataclass(frozen=True)
class Run:
    """A run's folder and how it tells what it does: `say` a passing state, `done` a finished step."""

    folder: Path
    request: Request
    say: Callable[[str], None]
    done: Callable[[str], None]


def execute(run: Run, command: list[str]) -> ServingResult:
    """Do the whole of run.request. Writes run.folder/result.json, also when a step fails and its Problem is raised."""
    chosen = [profile.load(name) for name in run.request.profiles]
    rows: list[ServingRow] = []
    source = _step(
        run.folder / "provenance.json",
        Provenance,
        lambda: provenance.collect(_plan(run, chosen[0]).machine, command),
    )
    try:
        with benchy.book_server() as book_url:
            for one in chosen:
                _measure(run, one, book_url)
    except Problem as problem:
        rows = [_row(run, one) for one in chosen]
        failed = next((i for i, one in enumerate(chosen) if not _complete(run, one)), len(chosen) - 1)
        failure = Failure(step=chosen[failed].name, message=provenance.redact(problem.message))
        rows[failed] = rows[failed].model_copy(update={"failures": [failure]})
        raise
    else:
        rows = [_row(run, one) for one in chosen]
    finally:
        if rows:
            model = _plan(run, chosen[0]).model
            result = ServingResult(
                id=run.folder.name,
                provenance=source,
                model=model.model_copy(update={"path": provenance.redact(model.path)}),
                rows=rows,
            )
            write(result, run.folder / "result.json")
    return result


def requests_per_profile(one: Profile, model: Model) -> int:
    """How many measured requests llama-benchy sends for a profile."""
    grid = one.model_settings(model.name).bench
    return len(grid.depth) * len(grid.prompt) * len(grid.output) * sum(grid.concurrency) * grid.runs


def _measure(run: Run, one: Profile, book_url: str) -> None:
    reference = profile.load(one.greedy.reference)
    if reference.name != one.name and not (run.folder / reference.name / "greedy.json").exists():
        plan, folder = _prepare(run, reference)
        run.done(f"{one.name}: its answers are compared with {reference.name}'s, which is served for that first")
        with server.running(plan, folder, _said(run, reference)) as running:
            _greedy(run, reference, running)
    plan, folder = _prepare(run, one)
    if not (folder / "cold.json").exists():
        wiped = _wipe(Path(plan.cache_root))
        with server.running(plan, folder, _said(run, one)) as running:
            begin = _begin(running, "cold", one).model_copy(update={"wiped": wiped})
        write(begin, folder / "cold.json")
        run.done(f"{one.name}: cold start {begin.start.start_s:.1f} s, first token {begin.start.first_token_s:.2f} s")
    if _complete(run, one):
        return
    plan, folder = _prepare(run, one)
    with server.running(plan, folder, _said(run, one)) as running:
        begin = _step(folder / "warm.json", Begin, lambda: _begin(running, "warm", one))
        run.done(f"{one.name}: warm start {begin.start.start_s:.1f} s, first token {begin.start.first_token_s:.2f} s")
        _greedy(run, one, running)
        _rates(run, one, running, book_url)


def _greedy(run: Run, one: Profile, running: Server) -> list[Answer]:
    run.say(f"{one.name}: greedy answers")
    path = run.folder / one.name / "greedy.json"
    gate = one.greedy
    answers = _step(
        path, list[Answer], lambda: [completion.greedy(running, prompt, gate.tokens) for prompt in gate.prompts]
    )
    run.done(f"{one.name}: {len(answers)} greedy answers")
    return answers


def _rates(run: Run, one: Profile, running: Server, book_url: str) -> None:
    model = running.plan.model
    grid = one.model_settings(model.name).bench
    folder = run.folder / one.name
    total, ended = requests_per_profile(one, model), 0

    def count_request() -> None:
        nonlocal ended
        ended += 1
        run.say(f"{one.name}: llama-benchy, {ended} of {total} requests")

    for depth in grid.depth:
        run.say(f"{one.name}: llama-benchy at depth {depth}, {ended} of {total} requests")
        rates = _step(
            folder / f"rates-{depth}.json",
            list[Rate],
            lambda depth=depth: benchy.measure(running, grid, depth, folder, book_url, count_request),
        )
        run.done(f"{one.name}: llama-benchy at depth {depth}: {len(rates)} measurements")


def _begin(running: Server, cache: str, one: Profile) -> Begin:
    first = completion.first_token_s(running, one.greedy.prompts[0])
    start = Start(cache=cache, start_s=running.start_s, first_token_s=first)
    return Begin(start=start, resolved=running.resolved, wiped=None)


def _plan(run: Run, one: Profile) -> Plan:
    return plans.make(
        one,
        port=_free_port(),
        cache_root=run.folder / "cache",
        model_path=run.request.model,
        overrides=run.request.overrides,
    )


def _prepare(run: Run, one: Profile) -> tuple[Plan, Path]:
    """A fresh plan (port and nonce) that has passed preflight, and the profile's folder."""
    plan, folder = _plan(run, one), run.folder / one.name
    found = preflight.problems(plan, folder)
    if found:
        raise found[0]
    return plan, folder


def _row(run: Run, one: Profile) -> ServingRow:
    """Whatever the profile's folder has by now."""
    folder, plan = run.folder / one.name, _plan(run, one)
    begins = [_load(path, Begin) for path in (folder / "cold.json", folder / "warm.json") if path.exists()]
    own = _load(folder / "greedy.json", list[Answer]) if (folder / "greedy.json").exists() else []
    grid = one.model_settings(plan.model.name).bench
    paths = [folder / f"rates-{depth}.json" for depth in grid.depth]
    return ServingRow(
        profile=one.name,
        description=one.description,
        requested=Requested(
            kv_cache_dtype=plan.kv_cache_dtype,
            attention_backends=plan.expected_backends,
            arguments=plan.arguments,
            command=provenance.redact_all(plan.command),
            environment=provenance.redact_all(plan.environment),
        ),
        resolved=begins[-1].resolved if begins else None,
        wiped=begins[0].wiped if begins else None,
        starts=[begin.start for begin in begins],
        completion=own[0].text if own else None,
        rates=[rate for path in paths if path.exists() for rate in _load(path, list[Rate])],
        greedy=_matches(run, one, own),
        failures=[],
    )


def _matches(run: Run, one: Profile, own: list[Answer]) -> list[GreedyMatch]:
    name = profile.load(one.greedy.reference).name
    if not own or name == one.name:
        return []
    reference = _load(run.folder / name / "greedy.json", list[Answer])
    return [completion.match(a, b, name, one.greedy) for a, b in zip(own, reference, strict=True)]


def _complete(run: Run, one: Profile) -> bool:
    folder = run.folder / one.name
    grid = one.model_settings(_plan(run, one).model.name).bench
    wanted = ["cold", "warm", "greedy", *(f"rates-{depth}" for depth in grid.depth)]
    return all((folder / f"{name}.json").exists() for name in wanted)


def _step(path: Path, kind: type[T], action: Callable[[], T]) -> T:
    """The value that `path` holds, or else what `action` returns, written there."""
    if path.exists():
        return _load(path, kind)
    value = action()
    write_text(TypeAdapter(kind).dump_json(value, indent=1).decode() + "\n", path)
    return value


def _load(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise Problem(
            "file", f"{path} cannot be read as a finished step", f"delete that file, then --resume {path.parent.parent}"
        ) from error


def _wipe(cache_root: Path) -> Wiped:
    """Empty the run's own JIT caches; says how much was there."""
    files = [path for path in cache_root.rglob("*") if path.is_file()]
    wiped = Wiped(files=len(files), bytes=sum(path.stat().st_size for path in files))
    shutil.rmtree(cache_root)
    cache_root.mkdir()
    return wiped


def _said(run: Run, one: Profile) -> Callable[[str], None]:
    return lambda line: run.say(f"{one.name}: {line}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
