"""A serving run: serve each profile cold, scored and warm, measure its speed, judge its answers, write one result.

Every step writes its own JSON into the run folder, so that an interrupted run resumes, and measurements from before a
failure are saved.
"""

from functools import partial

from bench.accuracy import run as accuracy
from bench.servers import run as runs
from bench.servers.client import Endpoint
from bench.servers.result import FailedStep
from bench.servers.run import Entry, Run
from bench.servers.starts import ready_starts, row_settings, serve
from bench.serving import rates
from bench.serving.load.book_server import book_server
from bench.serving.result import ServingResult, ServingRow
from bench.suite import Grid
from flashinfer_patches.errors import Problem
from vllm_launch import software
from vllm_launch.terminal import Step


def problems(run: Run) -> list[Problem]:
    """Everything that keeps a run from starting; writes nothing. Raises Problem("software") without llama-benchy."""
    software.check_llama_benchy()
    return [*_too_long(run), *runs.problems(run)]


def execute(run: Run, command: list[str]) -> ServingResult:
    """Measure a run's profiles. Writes run.folder/result.json, also where a step fails and its Problem is raised.

    A failed request ends no step: all others are measured, then Problem("requests") is raised.
    """
    run.show_steps(steps(run))
    kind = partial(ServingResult, slo=run.request.slo, grid=run.suite.grid)
    with book_server(longest_context(run.suite.grid)) as book_url:
        result = runs.measure_entries(run, command, kind, partial(_measure, run, book_url), partial(_row, run))
    rates.check(result)
    return result


def steps(run: Run, on_cold: Entry | None = None) -> list[Step]:
    """The steps of a run, in the order of execution. on_cold: the profile that is measured on its cold server."""
    return [each for entry in run.in_order() for each in _entry_steps(run, entry, entry == on_cold)]


def _entry_steps(run: Run, entry: Entry, on_cold: bool) -> list[Step]:
    if entry not in run.entries:
        return accuracy.answer_steps(run, entry)
    cold, warm = entry.step("cold start", "cold.json"), entry.step("warm start", "warm.json")
    scores = [accuracy.scored_start(entry), *accuracy.score_steps(run, entry)]
    measured = [*accuracy.greedy_steps(run, entry), *rates.steps(run, entry)]
    if on_cold or (not warm.path.exists() and all(each.path.exists() for each in measured)):
        return [cold, *measured, *scores]
    return [cold, *scores, warm, *measured]


def longest_context(grid: Grid) -> int:
    """The most tokens of a request and its output."""
    return max(grid.depth) + max(grid.prompt) + max(grid.output)


def _too_long(run: Run) -> list[Problem]:
    """A Problem where the longest context of the grid exceeds what a profile serves."""
    longest = longest_context(run.suite.grid)
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
    paths = [*accuracy.greedy_paths(run, entry), *rates.paths(run, entry)]
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
    paths = [*accuracy.greedy_paths(run, entry), *rates.paths(run, entry)]
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
    rates.measure(run, book_url, entry, endpoint)


def _row(run: Run, entry: Entry, failure: FailedStep | None) -> ServingRow:
    """A row of the profile's finished steps."""
    cold = ready_starts(entry).get("cold")
    return ServingRow(
        profile=entry.name,
        description=entry.description,
        **row_settings(entry),
        reference_kv_capacity_tokens=accuracy.reference_capacity(run),
        wiped=cold.wiped if cold else None,
        **rates.row_fields(run, entry, failure),
        greedy=accuracy.greedy_matches(run, entry),
        accuracy=accuracy.record(run, entry),
        left_out=_left_out(run),
        unfinished=accuracy.unfinished(run, entry),
    )


def _left_out(run: Run) -> list[str]:
    """What a quick run leaves out of the same run without --quick."""
    return ["log-probabilities", "sinks", "warm start", *skipped_rates(run)] if run.request.quick else []


def skipped_rates(run: Run) -> list[str]:
    """The points of the grid that a quick run skips, as text."""
    skipped, points = run.skipped_points, run.skipped_points + run.suite.grid.points
    return [f"rates at {skipped} of {points} points"] if skipped else []
