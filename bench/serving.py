"""The main job: serve each profile cold and warm, measure it, compare its answers, write one Result.

Every step writes its own JSON into the run folder, so that a run which was interrupted resumes, and what was
measured before a failure is kept.
"""

import shutil
from functools import partial
from pathlib import Path

from bench import benchy, completion, gates
from bench import run as runs
from bench.completion import Answer
from bench.result import (
    Failure,
    Rate,
    ServingResult,
    ServingRow,
    Start,
    Strict,
    Wiped,
)
from bench.run import Run, load, plan_of, prepare, requested, said, step
from vllm_launch import server, software
from vllm_launch.model import Model
from vllm_launch.profile import Profile
from vllm_launch.resolved import Resolved
from vllm_launch.server import Server


class Begin(Strict):
    """A start of the server, with what it resolved and what was wiped before it."""

    start: Start
    resolved: Resolved
    wiped: Wiped | None


def execute(run: Run, command: list[str]) -> ServingResult:
    """Do the whole of run.request. Writes run.folder/result.json, also where a step fails and its Problem is raised."""
    software.check_llama_benchy()
    with benchy.book_server() as book_url:
        return runs.execute(run, command, ServingResult, partial(_measure, run, book_url), partial(_row, run))


def requests_per_profile(one: Profile, model: Model) -> int:
    """How many measured requests llama-benchy sends for a profile."""
    grid = one.model_settings(model.name).bench
    return len(grid.depth) * len(grid.prompt) * len(grid.output) * sum(grid.concurrency) * grid.runs


def _measure(run: Run, book_url: str, one: Profile) -> None:
    gates.ensure_reference(run, one)
    folder = run.folder / one.name
    if not ((folder / "cold.json").exists() and gates.scored(run, one)):
        _measure_cold(run, one)
    grid = one.model_settings(plan_of(run, one).model.name).bench
    rates = [f"rates-{depth}.json" for depth in grid.depth]
    if not all((folder / name).exists() for name in ("warm.json", "greedy.json", *rates)):
        _measure_warm(run, one, book_url)


def _measure_cold(run: Run, one: Profile) -> None:
    """Start with empty caches, and take the log-probabilities there: that server has the token forcer."""
    plan, folder = prepare(run, one, gates.forcer())
    wiped = _wipe(Path(plan.cache_root)) if not (folder / "cold.json").exists() else None
    with server.running(plan, folder, said(run, one)) as running:
        begin = step(folder / "cold.json", Begin, lambda: _begin(running, "cold", one, wiped))
        run.done(f"{one.name}: cold start {begin.start.start_s:.1f} s, first token {begin.start.first_token_s:.2f} s")
        gates.scores(run, one, running, again=1)


def _measure_warm(run: Run, one: Profile, book_url: str) -> None:
    plan, folder = prepare(run, one)
    with server.running(plan, folder, said(run, one)) as running:
        begin = step(folder / "warm.json", Begin, lambda: _begin(running, "warm", one, None))
        run.done(f"{one.name}: warm start {begin.start.start_s:.1f} s, first token {begin.start.first_token_s:.2f} s")
        gates.greedy(run, one, running)
        _rates(run, one, running, book_url)


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
        rates = step(
            folder / f"rates-{depth}.json",
            list[Rate],
            lambda depth=depth: benchy.measure(running, grid, depth, folder, book_url, count_request),
        )
        run.done(f"{one.name}: llama-benchy at depth {depth}: {len(rates)} measurements")


def _begin(running: Server, cache: str, one: Profile, wiped: Wiped | None) -> Begin:
    first = completion.first_token_s(running, one.greedy.prompts[0])
    start = Start(cache=cache, start_s=running.start_s, first_token_s=first)
    return Begin(start=start, resolved=running.resolved, wiped=wiped)


def _row(run: Run, one: Profile, failure: Failure | None) -> ServingRow:
    """Whatever the profile's folder has by now."""
    folder, plan = run.folder / one.name, plan_of(run, one)
    begins = [load(path, Begin) for path in (folder / "cold.json", folder / "warm.json") if path.exists()]
    own = load(folder / "greedy.json", list[Answer]) if (folder / "greedy.json").exists() else []
    grid = one.model_settings(plan.model.name).bench
    paths = [folder / f"rates-{depth}.json" for depth in grid.depth]
    return ServingRow(
        profile=one.name,
        description=one.description,
        requested=requested(plan),
        resolved=begins[-1].resolved if begins else None,
        wiped=begins[0].wiped if begins else None,
        starts=[begin.start for begin in begins],
        completion=own[0].text if own else None,
        rates=[rate for path in paths if path.exists() for rate in load(path, list[Rate])],
        greedy=gates.greedy_matches(run, one),
        accuracy=gates.record(run, one, plan),
        failures=[failure] if failure else [],
    )


def _wipe(cache_root: Path) -> Wiped:
    """Empty the run's own JIT caches; says how much was there."""
    files = [path for path in cache_root.rglob("*") if path.is_file()]
    wiped = Wiped(files=len(files), bytes=sum(path.stat().st_size for path in files))
    shutil.rmtree(cache_root)
    cache_root.mkdir()
    return wiped
