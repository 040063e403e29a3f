"""A run: what it was asked, and its steps, each a file of its own that a resumed run finds done."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from bench.record import run_folder
from bench.record.files import write, writing
from bench.record.run_folder import Request
from bench.record.steps import step
from bench.servers import digest
from bench.servers.result import Failure, Requested
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import plan as plans
from vllm_launch import preflight, profile, provenance, redaction, software
from vllm_launch.plan import Plan
from vllm_launch.profile import Argument, Profile
from vllm_launch.provenance import Provenance

BUSY_S = 1.0
MOST_BUSY = 20.0  # percent of all cores, by others, before a run
BEGUN = "provenance.json"  # in a run's folder: the first thing that a run leaves

R = TypeVar("R", bound=Strict)


@dataclass(frozen=True)
class Run:
    """A run's folder and how it tells what it does: `say` a passing state, `done` a finished step."""

    folder: Path
    request: Request
    say: Callable[[str], None] = print
    done: Callable[[str], None] = print


def profiles_of(request: Request) -> tuple[list[Profile], list[Profile]]:
    """The profiles of a run, and the references that they are compared with besides.

    Raises Problem("profile") for two of one name, and for one that was asked something else than its reference.
    """
    chosen = [profile.load(name) for name in request.profiles]
    names = [one.name for one in chosen]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Problem("profile", f"two profiles have the name {twice[0]}", "name each once, or rename a file")
    references = {}
    for one in chosen:
        if one.greedy is None:
            one.check_measurable("other")
        reference = profile.load(one.greedy.reference)
        if reference.greedy is None:
            reference.check_measurable("other")
        same_name = [other for other in (*chosen, *references.values()) if other.name == reference.name]
        if any(other != reference for other in same_name):
            what = f"{one.name} is compared with another profile of the name {reference.name} than is in this run"
            raise Problem("profile", what, "rename the file of one of them")
        if (one.greedy.prompts, one.greedy.tokens) != (reference.greedy.prompts, reference.greedy.tokens):
            raise _asks_otherwise(one, reference, "greedy prompts or tokens")
        references[reference.name] = reference
    return chosen, [reference for name, reference in references.items() if name not in names]


def _asks_otherwise(one: Profile, reference: Profile, what: str) -> Problem:
    return Problem(
        "profile",
        f"the {what} of {one.name} are not those of its reference {reference.name}",
        f"write the same into both, or let {one.name} extend {reference.name}",
    )


def problems(run: Run) -> list[Problem]:
    """All that keeps a run from beginning, or from going on with the steps in its folder; makes nothing.

    Raises Problem where not even plans can be made.
    """
    chosen, references = profiles_of(run.request)
    run_folder.check(run.folder, run.request)
    if run.request.kind == "serving":
        software.check_llama_benchy()
    found: dict[str, Problem] = {}
    for one in chosen + references:
        plan, folder = plan_of(run, one), run.folder / one.name
        one.check_measurable(plan.model.name)
        try:
            digest.check(folder, digest.of(plan, one))
        except Problem as problem:
            found[problem.message] = problem
        reference, model = profile.load(one.greedy.reference), plan.model.name
        asked_alike = one.model_settings(model).accuracy == reference.model_settings(model).accuracy
        if one in chosen and not asked_alike:
            raise _asks_otherwise(one, reference, "texts under `accuracy`")
        if not (run.folder / BEGUN).exists():
            found |= {problem.message: problem for problem in preflight.problems(plan, folder)}
    return list(found.values())


def execute(
    run: Run,
    command: list[str],
    kind: type[R],
    measure: Callable[[Profile], None],
    row: Callable[[Profile, Failure | None], Strict],
) -> R:
    """Measure the profiles of run.request one after the other; `kind` with a `row` of each is run.folder/result.json.

    A reference comes before what is compared with it; the rows are in the order of the request. The result is written
    too when a measurement fails and its error is raised: with the failure, and what was done by then.
    The folder is this process's (run_folder.opened), and problems() has none.
    """
    chosen, _ = profiles_of(run.request)
    plan = plan_of(run, chosen[0])
    _warn_of_load(run, plan)
    source = step(run.folder / BEGUN, Provenance, lambda: provenance.collect(plan.machine, command, plan))
    failures: dict[str, Failure] = {}

    def written() -> R:
        result = kind(
            id=run.folder.name,
            provenance=source,
            model=provenance.redacted_model(plan.model),
            rows=[row(one, failures.get(one.name)) for one in chosen],
        )
        with writing(run.folder):
            write(result, run.folder / "result.json")
        return result

    try:
        for one in _references_first(chosen):
            try:
                measure(one)
            except Exception as error:
                message = getattr(error, "message", f"{type(error).__name__}: {error}")
                at = getattr(error, "step", "preparation")
                failures[one.name] = Failure(step=at, message=redaction.redact(message))
                raise
    except BaseException:
        try:
            written()
        except Problem as problem:  # the measurement's own error is the one to tell
            run.done(f"the result could not be written: {problem.message}")
        raise
    return written()


def _references_first(chosen: list[Profile]) -> list[Profile]:
    """`chosen`, each after the profile that it is compared with, where that is among them."""
    by_name, ordered = {one.name: one for one in chosen}, {}

    def add(name: str, waiting: tuple[str, ...] = ()) -> None:
        reference = profile.load(by_name[name].greedy.reference).name
        if reference in by_name and reference not in (*ordered, *waiting, name):
            add(reference, (*waiting, name))
        ordered.setdefault(name, by_name[name])

    for one in chosen:
        add(one.name)
    return list(ordered.values())


@contextmanager
def doing(name: str) -> Iterator[None]:
    """Note on an error of the block in which step of a run it arose; the innermost counts."""
    try:
        yield
    except Exception as error:
        error.step = getattr(error, "step", name)
        raise


def _warn_of_load(run: Run, plan: Plan) -> None:
    load, cores = provenance.load_average(), plan.machine.cores
    # The average alone also holds what has just ended, such as a set-up.
    if load > cores / 2 and psutil.cpu_percent(BUSY_S) > MOST_BUSY:
        run.done(
            f"warning: load average {load:.1f} on {cores} cores: other programs disturb what is measured;"
            " end them, then run this again"
        )


def plan_of(run: Run, one: Profile, extra: dict[str, Argument] | None = None) -> Plan:
    """A plan on a free loopback port, with this run's caches. extra: vLLM arguments beside the profile's."""
    return plans.make(
        one,
        port=_free_port(),
        cache_root=run.folder / run_folder.CACHE,
        model_path=run.request.model,
        overrides=run.request.overrides,
        extra=extra,
    )


def prepare(run: Run, one: Profile, extra: dict[str, Argument] | None = None) -> tuple[Plan, Path]:
    """A plan that has passed preflight, and the profile's folder, whose steps have the plan's digest."""
    plan, folder = plan_of(run, one, extra), run.folder / one.name
    digest.guard(folder, digest.of(plan_of(run, one), one))
    found = preflight.problems(plan, folder)
    if found:
        raise found[0]
    return plan, folder


def said(run: Run, one: Profile) -> Callable[[str], None]:
    """run.say with the profile's name in front."""
    return lambda line: run.say(f"{one.name}: {line}")


def requested(plan: Plan) -> Requested:
    """What a result records of a plan."""
    return Requested(
        kv_cache_dtype=plan.kv_cache_dtype,
        attention_backends=plan.expected_backends,
        arguments=redaction.redact_all(plan.arguments),
        command=redaction.redact_all(plan.command),
        environment=redaction.redact_all(plan.environment),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
