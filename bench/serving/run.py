"""A serving run: serve each profile cold, scored and warm, measure its speed, judge its answers, write one result.

Every step writes its own JSON into the run folder, so that an interrupted run resumes, and measurements from before a
failure are saved.
"""

from functools import partial
from pathlib import Path

from bench.accuracy import run as accuracy
from bench.servers import run as runs
from bench.servers.client import Endpoint
from bench.servers.result import FailedStep
from bench.servers.run import Entry, Run, in_step
from bench.servers.starts import ready_starts, row_settings, serve
from bench.serving import benchy, rates
from bench.serving.result import Rate, ServingResult, ServingRow
from flashinfer_patches.errors import Problem
from vllm_launch import software
from vllm_launch.terminal import Step


def problems(run: Run) -> list[Problem]:
    """All that keeps a serving run from starting; writes nothing. Raises Problem("software") without llama-benchy."""
    software.check_llama_benchy()
    return [*_too_long(run), *runs.problems(run)]


def execute(run: Run, command: list[str]) -> ServingResult:
    """Measure a run's profiles. Writes run.folder/result.json, also where a step fails and its Problem is raised.

    A failed request ends no step: all others are measured, then Problem("requests") is raised.
    """
    run.show_steps(steps(run))
    kind = partial(ServingResult, slo=run.request.slo)
    with benchy.book_server() as book_url:
        result = runs.measure_entries(run, command, kind, partial(_measure, run, book_url), partial(_row, run))
    failed = [f"{row.profile}: {each.step}: {each.message}" for row in result.rows for each in row.failures]
    if failed:
        remedy = "see llama-benchy's and the server's logs; --resume measures these points again and keeps the others"
        raise Problem("requests", "\n".join(failed), remedy)
    return result


def steps(run: Run, on_cold: Entry | None = None) -> list[Step]:
    """The steps of a run, in the order of execution. on_cold: the profile that is measured on its cold server."""
    return [each for entry in run.in_order() for each in _entry_steps(run, entry, entry == on_cold)]


def _entry_steps(run: Run, entry: Entry, on_cold: bool) -> list[Step]:
    if entry not in run.entries:
        return accuracy.answer_steps(run, entry)
    cold, warm = entry.step("cold start", "cold.json"), entry.step("warm start", "warm.json")
    scores = accuracy.score_steps(run, entry)
    depths = [
        Step(f"{entry.name}: {rates.step_name(depth)}", "rates", rates.path(entry.folder, depth))
        for depth in run.suite.grid.depth
    ]
    measured = [accuracy.greedy_step(entry), *depths]
    if on_cold or (not warm.path.exists() and all(each.path.exists() for each in measured)):
        return [cold, *measured, *scores]
    return [cold, *scores, warm, *measured]


def _too_long(run: Run) -> list[Problem]:
    """A Problem where the longest context of the grid exceeds what a profile serves."""
    grid = run.suite.grid
    longest = max(grid.depth) + max(grid.prompt) + max(grid.output)
    for entry in run.entries:
        limit = str(entry.plan.arguments.get("max-model-len", entry.plan.model.max_positions))
        if limit.isdecimal() and longest > int(limit):  # vLLM reads other forms too, such as 4k
            message = f"the grid needs a context of {longest} tokens, {entry.name} serves {limit}"
            remedy = f"a smaller grid: --depth, --prompt, --output; or, if the model can: -- --max-model-len {longest}"
            return [Problem("suite", message, remedy)]
    return []


def _measure(run: Run, book_url: str, entry: Entry) -> None:
    accuracy.ensure_reference(run, entry)
    if run.request.quick:
        _measure_quick(run, book_url, entry)
    else:
        _measure_whole(run, book_url, entry)


def _measure_quick(run: Run, book_url: str, entry: Entry) -> None:
    """Measure the server of the cold start; greedy answers are the only accuracy record."""
    paths = [*accuracy.greedy_paths(run, entry), *_rate_paths(run, entry)]
    if not all(path.exists() for path in paths):
        with serve(run, entry, "cold") as endpoint:
            _measure_warm(run, book_url, entry, endpoint)


def _measure_whole(run: Run, book_url: str, entry: Entry) -> None:
    on_cold = False
    if not (entry.folder / "cold.json").exists():
        with serve(run, entry, "cold") as endpoint:
            if on_cold := _caches_nothing(entry):
                run.show_steps(steps(run, entry))
                run.print_line(f"{entry.name}: the cold start cached nothing: measuring this server, no warm start")
                _measure_warm(run, book_url, entry, endpoint)
    if not accuracy.is_scored(entry):
        with serve(run, entry, "scored", accuracy.forcer()) as endpoint:
            accuracy.score(run, entry, endpoint, repeat_contexts=1)
    paths = [*accuracy.greedy_paths(run, entry), *_rate_paths(run, entry)]
    if not _caches_nothing(entry):
        paths.append(entry.folder / "warm.json")
    if not on_cold and not all(path.exists() for path in paths):
        with serve(run, entry, "warm") as endpoint:
            _measure_warm(run, book_url, entry, endpoint)


def _caches_nothing(entry: Entry) -> bool:
    """Whether the cold start left no file in the caches, so that a warm start would be the same."""
    return ready_starts(entry)["cold"].start.cached_files == 0


def _measure_warm(run: Run, book_url: str, entry: Entry, endpoint: Endpoint) -> None:
    accuracy.ask_greedy(run, entry, endpoint)
    _measure_rates(run, book_url, entry, endpoint)


def _rate_paths(run: Run, entry: Entry) -> list[Path]:
    return [rates.path(entry.folder, depth) for depth in run.suite.grid.depth]


def _measure_rates(run: Run, book_url: str, entry: Entry, endpoint: Endpoint) -> None:
    grid = run.suite.grid
    total, ended = grid.requests, 0

    def count_request() -> None:
        nonlocal ended
        ended += 1
        run.status(f"{entry.name}: llama-benchy, {ended} of {total} requests")

    for depth in grid.depth:
        run.status(f"{entry.name}: llama-benchy at depth {depth}, {ended} of {total} requests")
        with in_step(rates.step_name(depth)):
            attempts = rates.measure(endpoint, grid.part_at(depth), depth, entry.folder, book_url, count_request)
        failed = rates.failed_step(attempts, grid)
        message = failed.message if failed else f"{len(attempts)} measurements"
        run.print_line(f"{entry.name}: llama-benchy at depth {depth}: {message}")


def _row(run: Run, entry: Entry, failure: FailedStep | None) -> ServingRow:
    """A row of the steps that the profile's folder has by now."""
    cold = ready_starts(entry).get("cold")
    depths = [rates.saved(entry.folder, depth) for depth in run.suite.grid.depth]
    attempts = [attempt for of_depth in depths for attempt in of_depth]
    failures = [rates.failed_step(of_depth, run.suite.grid) for of_depth in depths]
    return ServingRow(
        profile=entry.name,
        description=entry.profile.description,
        **row_settings(entry),
        reference_kv_capacity_tokens=accuracy.reference_capacity(run),
        wiped=cold.wiped if cold else None,
        rates=[attempt for attempt in attempts if isinstance(attempt, Rate)],
        unrated=[attempt for attempt in attempts if not isinstance(attempt, Rate)],
        greedy=accuracy.greedy_matches(run, entry),
        accuracy=accuracy.record(run, entry),
        left_out=_left_out(run),
        failures=[each for each in (*failures, failure) if each],
    )


def _left_out(run: Run) -> list[str]:
    """What a quick run leaves out of the same run without --quick."""
    if not run.request.quick:
        return []
    skipped, points = run.skipped_points, run.skipped_points + run.suite.grid.points
    unmeasured = [f"rates at {skipped} of {points} points"] if skipped else []
    return ["log-probabilities", "sinks", "warm start", *unmeasured]
