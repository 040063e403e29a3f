"""The rates of a profile over the grid. Each depth is a step, with two files: one once all of its points are measured
without a failed request, one of the points so far until then.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from bench.record.steps import load, save
from bench.servers import client
from bench.servers.client import Endpoint
from bench.servers.result import FailedStep
from bench.servers.run import Entry, Run, in_step
from bench.serving.load import benchy, failures
from bench.serving.load.rate import Attempt, Rate
from bench.serving.result import ServingResult
from bench.suite import Grid, GridPoint
from flashinfer_patches.errors import Problem
from vllm_launch.terminal import Step

PROBE_S = 30.0
WARMUP_RETRIES = 1
POINTS = list[Rate | Attempt]


def path(folder: Path, depth: int) -> Path:
    """The file of a depth whose points are all measured without a failed request."""
    return folder / f"rates-{depth}.json"


def partial_path(folder: Path, depth: int) -> Path:
    """The file of the points so far, those with failed requests included."""
    return folder / f"rates-{depth}-partial.json"


def step_name(depth: int) -> str:
    return f"rates at depth {depth}"


def saved(folder: Path, depth: int) -> list[Attempt]:
    """Load the points of a depth measured so far."""
    paths = (path(folder, depth), partial_path(folder, depth))
    return next((load(each, POINTS) for each in paths if each.exists()), [])


def steps(run: Run, entry: Entry) -> list[Step]:
    """The steps of measure()."""
    return [
        Step(f"{entry.name}: {step_name(depth)}", "rates", path(entry.folder, depth)) for depth in run.suite.grid.depth
    ]


def paths(run: Run, entry: Entry) -> list[Path]:
    return [each.path for each in steps(run, entry)]


def measure(run: Run, book_url: str, entry: Entry, endpoint: Endpoint) -> None:
    """Measure the grid on a running server, depth by depth."""
    grid = run.suite.grid
    total, ended = grid.requests, 0

    def count_request() -> None:
        nonlocal ended
        ended += 1
        run.status(f"{entry.name}: llama-benchy, {ended} of {total} requests")

    for depth in grid.depth:
        run.status(f"{entry.name}: llama-benchy at depth {depth}, {ended} of {total} requests")
        with in_step(step_name(depth)):
            attempts = measure_depth(endpoint, grid.part_at(depth), depth, entry.folder, book_url, count_request)
        failed = failed_step(attempts, grid)
        message = failed.message if failed else f"{len(attempts)} measurements"
        run.print_line(f"{entry.name}: llama-benchy at depth {depth}: {message}")


def measure_depth(
    endpoint: Endpoint, grid: Grid, depth: int, folder: Path, book_url: str, on_request: Callable[[], None]
) -> list[Attempt]:
    """Measure the points of `grid` at one depth that are missing in the folder or have failed requests.

    Saves after each point, of two attempts the better one. A point of which no request was sent is measured once more.
    Raises what benchy.measure() does, and Problem("requests") where every request of a point failed and the server is
    dead.
    """
    if path(folder, depth).exists():
        return saved(folder, depth)
    measured = {attempt.grid_point: attempt for attempt in saved(folder, depth)}
    points = [GridPoint(depth, *sizes) for sizes in product(grid.prompt, grid.output, grid.concurrency)]
    for point in points:
        if point in measured and not measured[point].failures:
            continue
        for _ in range(1 + WARMUP_RETRIES):
            attempt = benchy.measure(endpoint, point, grid.runs, folder, book_url, on_request)
            measured[point] = max(measured.get(point, attempt), attempt, key=_quality)
            save(partial_path(folder, depth), POINTS, [measured[each] for each in points if each in measured])
            if attempt.failures and all(request.error for request in attempt.requests):
                _probe(endpoint, attempt)
            if attempt.requests or not attempt.failures:
                break
    attempts = [measured[point] for point in points]
    if not any(attempt.failures for attempt in attempts):
        save(path(folder, depth), POINTS, attempts)
        partial_path(folder, depth).unlink(missing_ok=True)
    return attempts


def _quality(attempt: Attempt) -> tuple[int, int]:
    """Orders attempts at a point: by whole repeats that have a rate, then by fewer failed requests."""
    return len(attempt.decode_tok_s) if isinstance(attempt, Rate) else 0, -attempt.failed


def _probe(endpoint: Endpoint, attempt: Attempt) -> None:
    """Raise Problem("requests") if the server is dead: no answer within PROBE_S, or an internal error."""
    try:
        client.post(endpoint, {"prompt": "a", "max_tokens": 1}, timeout_s=PROBE_S)
    except Problem as problem:
        if not isinstance(problem, client.Unanswered) and not problem.message.startswith("HTTP 5"):
            return
        count = sum(failure.requests for failure in attempt.failures)
        message = f"the server is dead: {failures.sentence(attempt.failures, count)}; then {problem.message}"
        raise Problem("requests", message, f"{problem.remedy}, then run again with --resume") from problem


def failed_step(attempts: Sequence[Attempt], grid: Grid) -> FailedStep | None:
    """The failed requests of a depth in one line; None without any."""
    counted = failures.total(attempt.failures for attempt in attempts)
    if not counted:
        return None
    requests = grid.runs * sum(attempt.concurrency for attempt in attempts)
    return FailedStep(step=step_name(attempts[0].depth), message=failures.sentence(counted, requests))


def row_fields(run: Run, entry: Entry, failure: FailedStep | None) -> dict[str, list]:
    """`rates`, `unrated` and `failures` of a result's row, so far. failure: the step whose error ended the run."""
    depths = [saved(entry.folder, depth) for depth in run.suite.grid.depth]
    attempts = [attempt for of_depth in depths for attempt in of_depth]
    failed = [each for of_depth in depths if (each := failed_step(of_depth, run.suite.grid))]
    if failure:
        failed = [*(each for each in failed if each.step != failure.step), failure]
    return {
        "rates": [attempt for attempt in attempts if isinstance(attempt, Rate)],
        "unrated": [attempt for attempt in attempts if not isinstance(attempt, Rate)],
        "failures": failed,
    }


def check(result: ServingResult) -> None:
    """Raise Problem("requests") where a request failed."""
    failed = [f"{row.profile}: {each.step}: {each.message}" for row in result.rows for each in row.failures]
    if failed:
        remedy = "see llama-benchy's and the server's logs; --resume measures these points again and keeps the others"
        raise Problem("requests", "\n".join(failed), remedy)
