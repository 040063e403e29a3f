"""llama-benchy as a subprocess, offline: one depth of the grid in, its samples out.

llama-benchy (0.4.0) drops failed requests unless told not to, falls back to the gpt2 tokenizer with a print, and
wants its text over HTTP: all three are handled here.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path

from pydantic import ValidationError

from bench.accuracy.texts import book
from bench.servers.client import Endpoint
from bench.serving import stream
from bench.serving.result import Rate
from bench.serving.stream import GridPoint, RequestTimes
from bench.suite import Grid
from flashinfer_patches.errors import Problem
from vllm_launch import provenance
from vllm_launch.plan import FIXED_ENVIRONMENT, inherited_environment

TIMEOUT_S = 4 * 3600
NO_PROXIES = {"NO_PROXY": "*", "no_proxy": "*"}  # nobody between us and the server, as for our own requests
KEY_VARIABLE = "FP8_SINKS_BENCHY_KEY"
# llama-benchy takes a key as an argument alone, which every user of the machine can read: it is added in the process.
WITH_KEY = (
    "import os, runpy, sys\n"
    f"sys.argv += ['--api-key', os.environ.pop({KEY_VARIABLE!r})]\n"
    "runpy.run_module('llama_benchy', run_name='__main__', alter_sys=True)"
)
GPT2_FALLBACK = "Falling back to 'gpt2'"


@contextmanager
def book_server() -> Iterator[str]:
    """Serve the book on loopback; yields its URL."""
    text = book()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/book.txt"
        finally:
            server.shutdown()
            thread.join()


def measure(
    endpoint: Endpoint, grid: Grid, depth: int, folder: Path, book_url: str, on_request: Callable[[], None]
) -> list[Rate]:
    """The rates of every prompt, output and concurrency of `grid` at one depth, in tokens and seconds.

    folder: llama-benchy's log, progress events, JSON and home. on_request: called when a measured request ends.
    Raises Problem("requests") for a failed request, the gpt2 fallback, or a metric that is missing.
    """
    saved = folder / f"llama-benchy-depth-{depth}.json"
    saved.unlink(missing_ok=True)
    key = endpoint.headers.get("Authorization", "").removeprefix("Bearer ")
    command = [
        *(sys.executable, *(["-c", WITH_KEY] if key else ["-m", "llama_benchy"])),
        *("--base-url", f"{endpoint.url}/v1", "--book-url", book_url),
        *("--model", endpoint.model, "--served-model-name", endpoint.model, "--tokenizer", endpoint.tokenizer),
        *("--pp", *map(str, grid.prompt), "--tg", *map(str, grid.output), "--depth", str(depth)),
        *("--concurrency", *map(str, grid.concurrency), "--runs", str(grid.runs)),
        *("--exact-tg", "--no-cache", "--latency-mode", "none", "--skip-coherence"),
        # A special token has no text unless it is not skipped, and llama-benchy counts only tokens that have some.
        *("--extra-body", "temperature=0,skip_special_tokens=false"),
        *("--exit-on-first-fail", "--no-results-on-fail", "--emit-progress", "-"),
        *("--save-result", str(saved.resolve()), "--format", "json"),
    ]
    environment = inherited_environment() | FIXED_ENVIRONMENT | NO_PROXIES | {"HOME": str(folder.resolve())}
    environment |= {KEY_VARIABLE: key} if key else {}
    log, events, loads = saved.with_suffix(".log"), saved.with_suffix(".jsonl"), []
    with log.open("w", encoding="utf-8") as errors, events.open("w", encoding="utf-8") as recorded:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
            env=environment,
        )  # fmt: skip
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                recorded.write(line)
                if '"type":"request_end"' in line:
                    loads.append(provenance.load_average())
                    on_request()
            process.wait()
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
    rates = read(saved, log.read_text(encoding="utf-8"), process.returncode, grid, depth)
    with events.open(encoding="utf-8") as lines:
        requests = stream.parse(lines)
    return with_requests(with_loads(rates, loads, grid.runs), requests, grid.runs)


def with_requests(rates: list[Rate], requests: dict[GridPoint, list[RequestTimes]], runs: int) -> list[Rate]:
    """The rates with the times of their requests; raises Problem("requests") for a missing or failed request."""
    for rate in rates:
        of_point, expected = requests.get(rate.grid_point, []), runs * rate.concurrency
        errors = [request.error for request in of_point if request.error]
        if errors or len(of_point) != expected:
            raise Problem(
                "requests",
                f"llama-benchy's progress events at depth {rate.depth} have {len(of_point) - len(errors)} of {expected}"
                f" requests{f': {errors[0]}' if errors else ''}",
                "see llama-benchy's log, then run again with --resume",
            )
    return [rate.model_copy(update={"requests": requests[rate.grid_point]}) for rate in rates]


def with_loads(rates: list[Rate], loads: list[float], runs: int) -> list[Rate]:
    """The rates with the load average at the end of each. loads: at the end of each measured request, in their order.

    None where the number of requests is not that of the rates.
    """
    ends = list(accumulate(runs * rate.concurrency for rate in rates))
    matches = ends[-1:] == [len(loads)]
    return [
        rate.model_copy(update={"load_average": loads[end - 1] if matches else None})
        for rate, end in zip(rates, ends, strict=True)
    ]


def read(saved: Path, log_text: str, returncode: int, grid: Grid, depth: int) -> list[Rate]:
    """llama-benchy's JSON as Rates; raises Problem("requests") if anything of the grid is missing or null."""
    if GPT2_FALLBACK in log_text:
        raise Problem(
            "requests",
            "llama-benchy could not read the model's tokenizer and fell back to gpt2's: its token counts are wrong",
            "check tokenizer.json in the model folder",
        )
    if returncode != 0 or not saved.exists():
        signs = ("rror", "HTTP", "FAILED", "failed")
        errors = [line for line in log_text.splitlines() if any(sign in line for sign in signs)]
        reason = errors[0][:300] if errors else "it gave no reason"
        raise Problem(
            "requests",
            f"llama-benchy failed at depth {depth} (exit code {returncode}): {reason}",
            f"see {saved.with_suffix('.log')} and the server's log beside it; then run again with --resume",
        )
    benchmarks = json.loads(saved.read_text(encoding="utf-8"))["benchmarks"]
    rates = [_rate(entry, grid.runs) for entry in benchmarks]
    expected = len(grid.prompt) * len(grid.output) * len(grid.concurrency)
    if len(rates) != expected:
        raise Problem(
            "requests", f"llama-benchy reported {len(rates)} of {expected} measurements", f"see {saved.parent}"
        )
    return rates


def _rate(entry: dict, runs: int) -> Rate:
    samples = {}
    for name in ("tg_throughput", "pp_throughput", "e2e_ttft"):
        values = (entry.get(name) or {}).get("values")
        # A time to first token for each request, a throughput for each repeat.
        expected = runs * entry["concurrency"] if name == "e2e_ttft" else runs
        if not values or len(values) != expected:
            raise Problem(
                "requests",
                f"llama-benchy's {name} has {len(values or [])} of {expected} samples at depth {entry['context_size']}",
                "a request failed or was too short to time; see llama-benchy's log, then run again with --resume",
            )
        samples[name] = values
    try:
        return Rate(
            depth=entry["context_size"],
            prompt=entry["prompt_size"],
            output=entry["response_size"],
            concurrency=entry["concurrency"],
            decode_tok_s=samples["tg_throughput"],
            prefill_tok_s=samples["pp_throughput"],
            first_token_ms=samples["e2e_ttft"],
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(
            "requests",
            f"llama-benchy's figures at depth {entry['context_size']} are no rates: {first['loc'][0]}: {first['msg']}"
            f" (got {first['input']!r})",
            "a request failed or was too short to time; see llama-benchy's log, then run again with --resume",
        ) from error
