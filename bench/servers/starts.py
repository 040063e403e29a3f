"""Starts of a profile's server: one plan each, and what was executed is what is kept.

`cold` and `warm` differ in nothing but the caches; `scored` has the token forcer beside, which costs a little time in
every step. A serving run makes it after the cold one; in an accuracy run it is the only one, on empty caches at first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from bench.record import run_folder
from bench.record.envelope import Wiped
from bench.record.files import write
from bench.record.steps import load, step
from bench.servers import client as completion
from bench.servers.result import RESOLVED_FIGURES, Requested, Start
from bench.servers.run import Run, doing, plan_of, prepare, requested, said
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import provenance, server
from vllm_launch.profile import Argument, Profile
from vllm_launch.resolved import Resolved
from vllm_launch.server import Server

CACHES = ("cold", "warm", "scored")
LAST = "requested.json"  # in a profile's folder: what the last start was asked, whether or not it got ready


class Begin(Strict):
    """A start that got ready: what was asked, what it resolved, and what was wiped before it."""

    start: Start
    requested: Requested
    resolved: Resolved
    wiped: Wiped | None


@contextmanager
def started(
    run: Run, one: Profile, cache: Literal["cold", "warm", "scored"], extra: dict[str, Argument] | None = None
) -> Iterator[Server]:
    """A ready server of a new plan, ended with the block; its start is step <cache>.json, unless one is there.

    extra: vLLM arguments beside the profile's. Before a cold start the run's caches are wiped.
    """
    with doing(f"{cache} start"):
        plan, folder = prepare(run, one, extra)
        wiped = run_folder.wipe_cache(Path(plan.cache_root)) if cache == "cold" else None
        with run_folder.writing(folder):
            write(requested(plan), folder / LAST)
        load_before = provenance.load_average()

        def begin(running: Server) -> Begin:
            first_token_s = completion.first_token_s(running, one.greedy.prompts[0])
            start = Start(
                cache=cache,
                start_s=running.start_s,
                first_token_s=first_token_s,
                command=requested(plan).command,
                load_average=load_before,
                cached_files=len(run_folder.cached_files(Path(plan.cache_root))),
            )
            run.done(f"{one.name}: first token {first_token_s:.2f} s after the {cache} start")
            return Begin(start=start, requested=requested(plan), resolved=running.resolved, wiped=wiped)

        with server.running(plan, folder, said(run, one)) as running:
            run.done(f"{one.name}: {cache} start {running.start_s:.1f} s")
            first = step(folder / f"{cache}.json", Begin, lambda: begin(running))
            _check_resolved(first.resolved, running.resolved, f"{one.name}'s first {cache} start")
            yield running


def _check_resolved(first: Resolved, again: Resolved, start: str) -> None:
    """Raise Problem("resolved") where a server of one start's kind chose other settings than the first one."""
    changed = [
        f"{name} {value}, now {getattr(again, name)}"
        for name, value in first
        if name not in RESOLVED_FIGURES and value != getattr(again, name)
    ]
    if changed:
        remedy = "find out why vLLM chooses otherwise, or begin a new run: another --run-dir"
        raise Problem("resolved", f"{start} resolved {'; '.join(changed)}", remedy)


def kept(run: Run, one: Profile) -> dict[str, Begin]:
    """The starts of a profile that got ready, by CACHES."""
    paths = {cache: run.folder / one.name / f"{cache}.json" for cache in CACHES}
    return {cache: load(path, Begin) for cache, path in paths.items() if path.exists()}


def row_settings(run: Run, one: Profile) -> dict:
    """`requested`, `resolved` and `starts` of a result's row: of the warm start, or else of the one that there was.

    Without any start the command is empty: none was executed.
    """
    begins = kept(run, one)
    shown = next((begins[cache] for cache in ("warm", "cold", "scored") if cache in begins), None)
    last = run.folder / one.name / LAST
    if shown:
        asked = shown.requested
    elif last.exists():
        asked = load(last, Requested)
    else:
        asked = requested(plan_of(run, one)).model_copy(update={"command": []})
    return {
        "requested": asked,
        "resolved": shown.resolved if shown else None,
        "starts": [begin.start for begin in begins.values()],
    }
