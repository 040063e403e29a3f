"""llama-benchy as a subprocess, offline: one point of the grid in, its requests and samples out.

Handles four habits of llama-benchy 0.4.0: it falls back to the gpt2 tokenizer with a print, wants its text over HTTP,
leaves failed requests out of its figures, and has no time limit for a request but an hour.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from bench.servers import client
from bench.servers.client import Endpoint
from bench.serving.load import counters, failures, stream
from bench.serving.load.rate import Attempt, Rate
from bench.serving.load.request_times import RequestTimes
from bench.suite import GridPoint
from flashinfer_patches.errors import Problem
from vllm_launch import provenance
from vllm_launch.plan import FIXED_ENVIRONMENT, inherited_environment

NO_PROXIES = {"NO_PROXY": "*", "no_proxy": "*"}  # as for our own requests
KEY_VARIABLE = "FP8_SINKS_BENCHY_KEY"
# llama-benchy takes a key only as an argument, which other users could read in the process list: add it inside.
WITH_KEY = (
    "import os, runpy, sys\n"
    f"sys.argv += ['--api-key=' + os.environ.pop({KEY_VARIABLE!r})]\n"
    "runpy.run_module('llama_benchy', run_name='__main__', alter_sys=True)"
)
STALL_S = 900.0  # without any event
SLOWEST_TOK_S = 10.0  # of a working server in the warm-up repeat, which has no events
CHECK_S = 1.0
GPT2_FALLBACK = "Falling back to 'gpt2'"
WARMUP_FAILED = "Warmup failed: "
ERROR_SIGNS = ("rror", "HTTP", "FAILED", "failed")
METRICS = {"decode_tok_s": "tg_throughput", "prefill_tok_s": "pp_throughput"}  # field of Rate -> llama-benchy's


class Execution(NamedTuple):
    """A finished execution of llama-benchy.

    warm_up_start, start: of its warm-up repeat and of its measured requests, by time.monotonic(). silent_s: the seconds
    without an event after which it was killed; None if it ended by itself.
    """

    returncode: int
    warm_up_start: float
    start: float
    silent_s: float | None
    load_average: float | None


def measure(
    endpoint: Endpoint, point: GridPoint, runs: int, folder: Path, book_url: str, on_request: Callable[[], None]
) -> Attempt:
    """Measure one point of the grid: a Rate, or an Attempt where a request failed in every repeat.

    folder: llama-benchy's log, progress events, JSON and home. on_request: called when a measured request ends.
    Raises Problem("requests") for the gpt2 fallback, and where llama-benchy itself fails or leaves out a metric.
    """
    saved = folder / f"llama-benchy-depth-{point.depth}-{point.prompt}-{point.output}-{point.concurrency}.json"
    saved.unlink(missing_ok=True)
    try:
        return _measured(endpoint, point, runs, saved, book_url, on_request)
    finally:
        for path in (saved.with_suffix(".log"), saved.with_suffix(".jsonl")):
            client.mask_file(path, endpoint.headers)


def _measured(
    endpoint: Endpoint, point: GridPoint, runs: int, saved: Path, book_url: str, on_request: Callable[[], None]
) -> Attempt:
    with counters.polled(endpoint) as (samples, stop_polling):
        command, environment = _command(endpoint, point, runs, book_url, saved)
        execution = _execute(command, environment, saved, _warm_up_limit_s(point), stop_polling, on_request)
    log_text = failures.without_secrets(saved.with_suffix(".log").read_text(encoding="utf-8"), endpoint.headers)
    _check(execution, log_text, saved)
    with saved.with_suffix(".jsonl").open(encoding="utf-8") as lines:
        requests = stream.parse(lines).get(point, [])
    requests = [_with_stall(request, execution.silent_s) for request in requests] if execution.silent_s else requests
    requests = failures.redacted(requests, endpoint.headers)
    unsent = runs * point.concurrency - len(requests)
    attempt = Attempt(
        **point._asdict(),
        load_average=execution.load_average,
        requests=requests,
        failures=failures.counted(requests, unsent, _why_unsent(execution, log_text)),
        counters=counters.summary(samples, execution.warm_up_start, execution.start, point.concurrency),
    )
    return read(saved, attempt, runs)


def _command(
    endpoint: Endpoint, point: GridPoint, runs: int, book_url: str, saved: Path
) -> tuple[list[str], dict[str, str]]:
    """llama-benchy's arguments and environment; the key is in the environment alone."""
    key = endpoint.headers.get("Authorization", "").removeprefix("Bearer ")
    command = [
        *(sys.executable, *(["-c", WITH_KEY] if key else ["-m", "llama_benchy"])),
        *("--base-url", f"{endpoint.url}/v1", "--book-url", book_url),
        *("--model", endpoint.model, "--served-model-name", endpoint.model, "--tokenizer", endpoint.tokenizer),
        *("--pp", str(point.prompt), "--tg", str(point.output), "--depth", str(point.depth)),
        *("--concurrency", str(point.concurrency), "--runs", str(runs)),
        *("--exact-tg", "--no-cache", "--latency-mode", "none", "--skip-coherence"),
        # A special token has no text unless it is not skipped, and llama-benchy counts only tokens that have some.
        *("--extra-body", "temperature=0,skip_special_tokens=false"),
        *("--emit-progress", "-", "--save-result", str(saved.resolve()), "--format", "json"),
    ]
    environment = inherited_environment() | FIXED_ENVIRONMENT | NO_PROXIES | {"HOME": str(saved.parent.resolve())}
    return command, environment | ({KEY_VARIABLE: key} if key else {})


def _warm_up_limit_s(point: GridPoint) -> float:
    """The seconds that a point's warm-up repeat may take."""
    return STALL_S + point.concurrency * (point.depth + point.prompt + point.output) / SLOWEST_TOK_S


def _execute(
    command: list[str],
    environment: dict[str, str],
    saved: Path,
    warm_up_limit_s: float,
    on_start: Callable[[], None],
    on_request: Callable[[], None],
) -> Execution:
    """Run llama-benchy until it ends or stalls; write its log and events beside `saved`.

    on_start: called when the first measured request starts.
    """
    with (
        saved.with_suffix(".log").open("w", encoding="utf-8") as errors,
        saved.with_suffix(".jsonl").open("w", encoding="utf-8") as recorded,
    ):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=saved.parent,
            env=environment,
        )  # fmt: skip
        warm_up_start = start = last_event = time.monotonic()
        load, is_warm = None, False
        with _killed_when_silent(process, lambda: (last_event, STALL_S if is_warm else warm_up_limit_s)) as killed:
            for line in process.stdout:
                last_event = time.monotonic()
                recorded.write(line)
                if '"type":"latency_measured"' in line:  # the last event before the warm-up repeat
                    warm_up_start = last_event
                elif not is_warm and '"type":"request_start"' in line:
                    start, is_warm = last_event, True
                    on_start()
                elif '"type":"request_end"' in line:
                    load = provenance.load_average()
                    on_request()
            process.wait()
    return Execution(process.returncode, warm_up_start, start, killed[0] if killed else None, load)


@contextmanager
def _killed_when_silent(process: subprocess.Popen, silence: Callable[[], tuple[float, float]]) -> Iterator[list[float]]:
    """Kill the process after too long without an event, and with the block; yields a list that then has the limit.

    silence: when the last event came, by time.monotonic(), and the limit in seconds.
    """
    killed, ended = [], threading.Event()

    def watch() -> None:
        while not ended.wait(CHECK_S):
            last_event, limit_s = silence()
            if time.monotonic() - last_event > limit_s:
                killed.append(limit_s)
                process.kill()
                return

    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        yield killed
    finally:
        ended.set()
        process.kill()
        process.wait()
        watchdog.join()


def _with_stall(request: RequestTimes, silent_s: float) -> RequestTimes:
    """Mark an unfinished request as stalled, and add the silence to its time."""
    if request.error != stream.NO_END:
        return request
    return request.model_copy(update={"error": _stall_text(silent_s), "e2e_ms": request.e2e_ms + 1000 * silent_s})


def _stall_text(silent_s: float) -> str:
    return f"no token for {silent_s:.0f} s"


def _why_unsent(execution: Execution, log_text: str) -> str:
    if execution.silent_s:
        return _stall_text(execution.silent_s)
    errors = [line.partition(WARMUP_FAILED)[2] for line in log_text.splitlines() if WARMUP_FAILED in line]
    return failures.reason(errors[0]) if errors else ""


def _check(execution: Execution, log_text: str, saved: Path) -> None:
    """Raise Problem("requests") for the gpt2 fallback, and where llama-benchy itself failed, not the server."""
    log = saved.with_suffix(".log")
    if GPT2_FALLBACK in log_text:
        raise Problem(
            "requests",
            "llama-benchy could not read the model's tokenizer and fell back to gpt2's: its token counts are wrong",
            "check tokenizer.json in the model folder",
        )
    if execution.silent_s or WARMUP_FAILED in log_text:
        return
    if execution.returncode != 0 or not saved.exists():
        errors = [line for line in log_text.splitlines() if any(sign in line for sign in ERROR_SIGNS)]
        reason = errors[-1][:300] if errors else "it gave no reason"
        raise Problem(
            "requests",
            f"llama-benchy failed (exit code {execution.returncode}): {reason}",
            f"see {log} and the server's log beside it; then run again with --resume",
        )


def read(saved: Path, attempt: Attempt, runs: int) -> Attempt:
    """The attempt as a Rate, with llama-benchy's samples of its whole repeats; unchanged without such a repeat.

    Raises Problem("requests") if llama-benchy lacks a sample though no request failed.
    """
    if not saved.exists():
        return attempt
    (entry,) = json.loads(saved.read_text(encoding="utf-8"))["benchmarks"]
    whole_repeats = [repeat[0].run for repeat in attempt.whole_repeats]
    samples = {
        field: _of_repeats(whole_repeats, (entry.get(metric) or {}).get("values") or [], attempt)
        for field, metric in METRICS.items()
    }
    if attempt.failures and not all(samples.values()):
        return attempt
    if missing := [metric for field, metric in METRICS.items() if not samples[field]]:
        raise Problem(
            "requests",
            f"llama-benchy has fewer than {runs} samples of {missing[0]} at depth {attempt.depth}",
            "an output was too short to time; see llama-benchy's log, then run again with --resume",
        )
    first_token_ms = [request.ttft_ms for repeat in attempt.whole_repeats for request in repeat]
    try:
        return Rate(**dict(attempt), **samples, first_token_ms=first_token_ms)
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(
            "requests",
            f"llama-benchy's figures at depth {attempt.depth} are not rates: {first['loc'][0]}: {first['msg']}"
            f" (got {first['input']!r})",
            "an output was too short to time; see llama-benchy's log, then run again with --resume",
        ) from error


def _of_repeats(whole_repeats: list[int], values: list[float], attempt: Attempt) -> list[float]:
    """Values of the whole repeats; none where values cannot be matched to repeats.

    llama-benchy has a value for every repeat in which any request succeeded.
    """
    valued = sorted({request.run for request in attempt.requests if request.error in (None, stream.CUT)})
    if len(values) != len(valued):
        return []
    return [value for repeat, value in zip(valued, values, strict=True) if repeat in whole_repeats]
