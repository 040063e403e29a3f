"""The main job: serve each profile cold, scored and warm, measure it, compare its answers, write one Result.

Every step writes its own JSON into the run folder, so that a run which was interrupted resumes, and what was
measured before a failure is kept.
"""

from functools import partial
from pathlib import Path

from bench.accuracy import run as gates
from bench.record.steps import load, step
from bench.servers import run as runs
from bench.servers.client import Answer
from bench.servers.result import Failure
from bench.servers.run import Run, doing, plan_of
from bench.servers.starts import kept, row_settings, started
from bench.serving import benchy
from bench.serving.result import Rate, ServingResult, ServingRow
from vllm_launch.model import Model
from vllm_launch.profile import Profile
from vllm_launch.server import Server


def execute(run: Run, command: list[str]) -> ServingResult:
    """Do the whole of run.request. Writes run.folder/result.json, also where a step fails and its Problem is raised."""
    with benchy.book_server() as book_url:
        return runs.execute(run, command, ServingResult, partial(_measure, run, book_url), partial(_row, run))


def requests_per_profile(one: Profile, model: Model) -> int:
    """How many measured requests llama-benchy sends for a profile."""
    grid = one.model_settings(model.name).bench
    return len(grid.depth) * len(grid.prompt) * len(grid.output) * sum(grid.concurrency) * grid.runs


def _measure(run: Run, book_url: str, one: Profile) -> None:
    gates.ensure_reference(run, one)
    folder = run.folder / one.name
    if not (folder / "cold.json").exists():
        with started(run, one, "cold") as running:
            if _caches_nothing(run, one):
                run.done(f"{one.name}: nothing was cached: a warm start would be a cold one")
                _answers_and_rates(run, one, running, book_url)
    if not gates.scored(run, one):
        with started(run, one, "scored", gates.forcer()) as running:
            gates.scores(run, one, running, again=1)
    steps = [folder / "greedy.json", *_rate_paths(run, one)]
    if not _caches_nothing(run, one):
        steps.append(folder / "warm.json")
    if not all(path.exists() for path in steps):
        with started(run, one, "warm") as running:
            _answers_and_rates(run, one, running, book_url)


def _caches_nothing(run: Run, one: Profile) -> bool:
    """Whether the cold start left no file in the caches, so that a warm one would find what it found."""
    return kept(run, one)["cold"].start.cached_files == 0


def _answers_and_rates(run: Run, one: Profile, running: Server, book_url: str) -> None:
    gates.greedy(run, one, running)
    _rates(run, one, running, book_url)


def _rate_paths(run: Run, one: Profile) -> list[Path]:
    grid = one.model_settings(plan_of(run, one).model.name).bench
    return [run.folder / one.name / f"rates-{depth}.json" for depth in grid.depth]


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
        with doing(f"rates at depth {depth}"):
            rates = step(
                folder / f"rates-{depth}.json",
                list[Rate],
                lambda depth=depth: benchy.measure(running, grid, depth, folder, book_url, count_request),
            )
        run.done(f"{one.name}: llama-benchy at depth {depth}: {len(rates)} measurements")


def _row(run: Run, one: Profile, failure: Failure | None) -> ServingRow:
    """Whatever the profile's folder has by now."""
    folder, cold = run.folder / one.name, kept(run, one).get("cold")
    own = load(folder / "greedy.json", list[Answer]) if (folder / "greedy.json").exists() else []
    return ServingRow(
        profile=one.name,
        description=one.description,
        **row_settings(run, one),
        wiped=cold.wiped if cold else None,
        completion=own[0].text if own else None,
        rates=[rate for path in _rate_paths(run, one) if path.exists() for rate in load(path, list[Rate])],
        greedy=gates.greedy_matches(run, one),
        accuracy=gates.record(run, one),
        failures=[failure] if failure else [],
    )
