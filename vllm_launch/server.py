"""Run one vLLM server: start it under a supervisor, wait until it is ready, end all of its processes."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from flashinfer_patches import jit_cache, package
from flashinfer_patches.errors import Problem
from vllm_launch import marks, resolved
from vllm_launch.decoder import choice, contract, record
from vllm_launch.failure_hint import failure_hint
from vllm_launch.plan import CACHE_VARIABLES, KERNEL_CACHE, Plan, child_environment

GRACE_S = 15.0
KILL_S = 10.0
POLL_S = 0.1
LOG_TAIL_LINES = 12


@dataclass(frozen=True)
class Server:
    """A ready server. start_s: seconds from launch to ready. log_offset: the byte in the log where its lines start."""

    plan: Plan
    log: Path
    log_offset: int
    start_s: float
    resolved: resolved.Resolved
    supervisor: subprocess.Popen

    def wait(self) -> None:
        """Block until the server ends, then raise Problem("server"): it should not have."""
        self.supervisor.wait()
        raise _died(self.log, self.log_offset, self.supervisor.returncode)


@contextmanager
def running(plan: Plan, folder: Path, show_status: Callable[[str], None]) -> Iterator[Server]:
    """Start `plan` with `folder` as working directory and log folder; on exit, no process of the server is left.

    show_status: called with a short line on progress. Raises Problem("server") if the server does not get ready or does
    not end, Problem("resolved") if vLLM chose other settings than the plan expects.
    """
    kernels = Path(plan.environment[KERNEL_CACHE])
    if package.installed():
        jit_cache.make(kernels)  # raises if the folder exists and is not ours
    # The driver may not create its cache.
    Path(plan.cache_root, CACHE_VARIABLES["CUDA_CACHE_PATH"]).mkdir(parents=True, exist_ok=True)
    log = folder / f"{plan.profile}.log"
    started = time.monotonic()
    offset = log.stat().st_size if log.exists() else 0
    with supervised(plan.command, child_environment(plan), log) as supervisor:
        try:
            _wait_until_ready(plan, supervisor, log, offset, started, show_status)
            start_s = time.monotonic() - started
            yield Server(plan, log, offset, start_s, _read_back(plan, log, offset), supervisor)
        finally:
            show_status("ending the server")


@contextmanager
def supervised(
    command: list[str], environment: dict[str, str], log: Path, grace_s: float = GRACE_S
) -> Iterator[subprocess.Popen]:
    """Run `command` under a supervisor, in the log's folder; on exit, no process of it is left.

    environment: complete, with marks.NONCE_VARIABLE. grace_s: seconds from TERM to KILL. Raises Problem("server") if a
    process could not be ended.
    """
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "vllm_launch.supervisor", str(log.resolve()), str(grace_s), "--", *command],
        stdin=subprocess.PIPE,
        cwd=log.parent,
        env=environment,
        start_new_session=True,
    )
    inherited = marks.of_server(environment[marks.NONCE_VARIABLE], supervisor.pid, log)
    try:
        yield supervisor
    finally:
        _end(supervisor, inherited, grace_s)


def _wait_until_ready(plan, supervisor, log: Path, offset: int, started: float, show_status) -> None:
    with requests.Session() as session:
        session.trust_env = False  # never through a proxy: the server is on loopback
        while True:
            if supervisor.poll() is not None:
                raise _died(log, offset, supervisor.returncode)
            elapsed = time.monotonic() - started
            if elapsed > plan.start_timeout_s:
                raise Problem(
                    "server",
                    f"not ready after {elapsed:.0f} s\n{_tail(log, offset)}",
                    f"see {log}; a larger start_timeout_s in the profile if it was still loading",
                )
            if _answers(plan, session):
                return
            show_status(f"{elapsed:3.0f} s  {_last_line(log, offset)}")
            time.sleep(POLL_S)


def _answers(plan: Plan, session: requests.Session) -> bool:
    """Whether the plan's server is healthy; raises Problem("address") if another server answers on its port."""
    try:
        if session.get(f"{plan.url}/health", timeout=5).status_code != 200:
            return False
        answer = session.get(f"{plan.url}/v1/models", timeout=5, headers=authorization(plan))
        if answer.status_code in (401, 403):
            raise Problem("address", f"{plan.url} does not accept our key: another server", "choose another --port")
        names = [entry["id"] for entry in answer.json()["data"]]
    except (requests.RequestException, ValueError, KeyError):
        return False
    if plan.nonce not in names:
        raise Problem(
            "address",
            f"another server answers on {plan.url}; it serves {', '.join(names) or 'nothing'}",
            "end it, or choose another --port",
        )
    return True


def authorization(plan: Plan) -> dict[str, str]:
    """The headers of a request to the plan's server; empty on loopback, where a server has no key."""
    key = child_environment(plan).get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _read_back(plan: Plan, log: Path, offset: int) -> resolved.Resolved:
    text = _log_text(log, offset)
    try:
        ours = record.read(log.parent / plan.environment[contract.RECORD]) if plan.decoder != "stock" else None
    except ValueError as error:
        remedy = f"see the lines of fp8-sinks in {log}, or serve with `decoder: stock`, as profile fp8-stock does"
        raise Problem("resolved", str(error), remedy) from error
    try:
        settings = resolved.read(text, plan.vllm_version, ours)
    except ValueError as error:
        raise Problem("resolved", str(error), f"see {log}; is this vLLM release supported?") from error
    differences = resolved.mismatches(
        settings,
        plan.expected_backends,
        plan.kv_cache_dtype,
        plan.kv_skip_layers,
        plan.decoder,
        choice.scales_hash(plan.kv_scales),
        plan.kv_format,
    )
    if differences:
        raise Problem(
            "resolved",
            f"vLLM resolved other settings than profile {plan.profile} expects: {'; '.join(map(str, differences))}",
            "change `backends` or `decoder` in the profile, or the arguments",
        )
    return settings


def _end(supervisor: subprocess.Popen, inherited: marks.Marks, grace_s: float) -> None:
    supervisor.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(timeout=grace_s + 2 * KILL_S)
    # If the supervisor was killed or gave up, its processes are still alive.
    alive = marks.kill(inherited, KILL_S)
    if alive:
        raise Problem(
            "server",
            f"could not end processes {', '.join(map(str, alive))}",
            "they hang in the kernel: check them with ps, and restart the machine if they hold the GPU",
        )
    supervisor.wait()


def _died(log: Path, offset: int, returncode: int) -> Problem:
    message, lines = f"the server ended with exit code {returncode}", _tail(log, offset)
    if not lines:
        remedy = "run its command by hand: `fp8-sinks serve PROFILE --dry-run` prints it"
        return Problem("server", f"{message} and wrote no log ({log})", remedy)
    remedy = failure_hint(_log_text(log, offset)) or f"read the whole log: {log}"
    return Problem("server", f"{message}; the end of its log:\n{lines}", remedy)


def _log_text(log: Path, offset: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode("utf-8", errors="replace")


def _tail(log: Path, offset: int) -> str:
    lines = [line for line in _log_text(log, offset).splitlines() if line.strip()]
    return "\n".join(f"  | {line[:200]}" for line in lines[-LOG_TAIL_LINES:])


def _last_line(log: Path, offset: int) -> str:
    lines = [line for line in _log_text(log, offset).splitlines() if line.strip()]
    return lines[-1].split("] ", 1)[-1].strip()[:80] if lines else "starting"
