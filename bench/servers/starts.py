"""Starts of a profile's server: one plan each, and the record of what was executed.

`cold` and `warm` differ in the caches alone; `scored` has the token forcer, which costs a little time in every step.
A serving run makes it after the cold one; in an accuracy run it is the only one, on empty caches at first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from bench.record import run_folder
from bench.record.envelope import Wiped
from bench.record.files import write
from bench.record.steps import load, step
from bench.servers import client, digest
from bench.servers.client import Endpoint
from bench.servers.result import RESOLVED_FIGURES, Requested, Start
from bench.servers.run import Entry, ProfileEntry, Run, in_step, make_plan
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Strict
from vllm_launch import preflight, provenance, redaction, server
from vllm_launch.plan import Plan
from vllm_launch.profile import Argument
from vllm_launch.resolved import Resolved
from vllm_launch.server import Server

CACHES = ("cold", "warm", "scored")
LAST = "requested.json"  # in a profile's folder: the request of the last start, whether or not it got ready


class ReadyStart(Strict):
    """A start that got ready: its request, what vLLM resolved, and what was wiped before it."""

    start: Start
    requested: Requested
    resolved: Resolved
    wiped: Wiped | None


@contextmanager
def serve(
    run: Run, entry: ProfileEntry, cache: Literal["cold", "warm", "scored"], extra: dict[str, Argument] | None = None
) -> Iterator[Endpoint]:
    """Start a server, yield its endpoint when it is ready, and end it with the block; the start is step <cache>.json.

    extra: vLLM arguments beside the profile's. Before a cold start the run's caches are wiped.
    """
    with in_step(f"{cache} start"):
        plan = make_plan(run.folder, run.request, entry.profile, extra)
        digest.guard(entry.folder, digest.compute(entry.plan, run.suite))
        if problems := preflight.problems(plan, entry.folder):
            raise problems[0]
        wiped = run_folder.wipe_cache(Path(plan.cache_root)) if cache == "cold" else None
        with writing(entry.folder):
            write(requested(plan), entry.folder / LAST)
        load_before = provenance.load_average()

        def first_request(running: Server) -> ReadyStart:
            first_token_s = client.first_token_s(client.endpoint_of(running), run.suite.greedy.prompts[0])
            start = Start(
                cache=cache,
                start_s=running.start_s,
                first_token_s=first_token_s,
                command=requested(plan).command,
                load_average=load_before,
                cached_files=len(run_folder.cached_files(Path(plan.cache_root))),
            )
            run.print_line(f"{entry.name}: first token {first_token_s:.2f} s after the {cache} start")
            return ReadyStart(start=start, requested=requested(plan), resolved=running.resolved, wiped=wiped)

        with server.running(plan, entry.folder, status_of(run, entry)) as running:
            run.print_line(f"{entry.name}: {cache} start {running.start_s:.1f} s")
            first = step(entry.folder / f"{cache}.json", ReadyStart, lambda: first_request(running))
            _check_resolved(first.resolved, running.resolved, f"{entry.name}'s first {cache} start")
            yield client.endpoint_of(running)


def status_of(run: Run, entry: Entry) -> Callable[[str], None]:
    """run.status with the entry's name in front."""
    return lambda line: run.status(f"{entry.name}: {line}")


def requested(plan: Plan) -> Requested:
    """What a result records of a plan."""
    return Requested(
        kv_cache_dtype=plan.kv_cache_dtype,
        attention_backends=plan.expected_backends,
        arguments=redaction.redact_all(plan.arguments),
        command=redaction.redact_all(plan.command),
        environment=redaction.redact_all(plan.environment),
    )


def ready_starts(entry: ProfileEntry) -> dict[str, ReadyStart]:
    """The starts of a profile that got ready, by CACHES."""
    paths = {cache: entry.folder / f"{cache}.json" for cache in CACHES}
    return {cache: load(path, ReadyStart) for cache, path in paths.items() if path.exists()}


def row_settings(entry: ProfileEntry) -> dict:
    """`decoder`, `requested`, `resolved` and `starts` of a result's row: of the warm start, or else of the cold or
    scored one.

    Without any start the command is empty: none was executed.
    """
    starts = ready_starts(entry)
    shown = next((starts[cache] for cache in ("warm", "cold", "scored") if cache in starts), None)
    last = entry.folder / LAST
    if shown:
        request = shown.requested
    elif last.exists():
        request = load(last, Requested)
    else:
        request = requested(entry.plan).model_copy(update={"command": []})
    return {
        "decoder": entry.plan.decoder,
        "requested": request,
        "resolved": shown.resolved if shown else None,
        "starts": [ready.start for ready in starts.values()],
    }


def _check_resolved(first: Resolved, later: Resolved, start: str) -> None:
    """Raise Problem("resolved") where a later server of the same kind of start resolved other settings."""
    changed = [
        f"{name} {value}, now {getattr(later, name)}"
        for name, value in first
        if name not in RESOLVED_FIGURES and value != getattr(later, name)
    ]
    if changed:
        remedy = "find out why vLLM chooses differently, or start a new run: another --run-dir"
        raise Problem("resolved", f"{start} resolved {'; '.join(changed)}", remedy)
