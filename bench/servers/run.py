"""A run on servers: what is measured and with what, resolved once, then one entry after the other."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from bench import suite as suites
from bench.record import run_folder
from bench.record.files import write
from bench.record.run_folder import Request
from bench.record.steps import step
from bench.servers import digest
from bench.servers.result import FailedStep
from bench.suite import Suite, Thresholds
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Strict
from vllm_launch import plan as plans
from vllm_launch import preflight, profile, provenance, redaction
from vllm_launch.machine import Machine
from vllm_launch.model import Model
from vllm_launch.plan import Plan
from vllm_launch.profile import Argument, Profile
from vllm_launch.provenance import Provenance
from vllm_launch.terminal import Step

BUSY_S = 1.0
MAX_BUSY = 20.0  # percent of all cores, by other programs, before a run
PROVENANCE = "provenance.json"  # in a run's folder: the first file that a run writes

R = TypeVar("R", bound=Strict)


@dataclass(frozen=True)
class Entry:
    """What a run measures. name: of its row and of its folder."""

    name: str
    description: str
    thresholds: Thresholds
    folder: Path

    def step(self, name: str, file: str) -> Step:
        """A step of this entry, which writes `file` into its folder."""
        return Step(f"{self.name}: {name}", name, self.folder / file)

    def unfinished(self, steps: list[Step]) -> list[str]:
        """The kinds of this entry's steps that have no file yet."""
        return [each.kind for each in steps if each.path.parent == self.folder and not each.path.exists()]


@dataclass(frozen=True)
class ProfileEntry(Entry):
    """A profile, on servers that the run starts.

    plan: for dry run, preflight and digest; each start plans anew, with its own port and nonce.
    """

    profile: Profile
    plan: Plan


@dataclass(frozen=True)
class Run:
    """A run, resolved. entries: in the order of the request.

    suite: with the grid of the request. machine: where the run is. reference: the entry that answers are compared with;
    may be one of entries. skipped_points: points of the grid that a quick run does not measure. plan: of a server that
    the run starts; None if it starts none. status, print_line, show_steps: as in terminal.Display.
    """

    folder: Path
    request: Request
    suite: Suite
    model: Model
    machine: Machine
    entries: list[Entry]
    reference: Entry
    skipped_points: int
    plan: Plan | None = None
    status: Callable[[str], None] = print
    print_line: Callable[[str], None] = print
    show_steps: Callable[[list[Step]], None] = print

    def is_reference(self, entry: Entry) -> bool:
        return entry.name == self.reference.name

    def in_order(self) -> list[Entry]:
        """The entries in the order in which they are served: the reference, which always is, then the others."""
        return [self.reference, *(entry for entry in self.entries if not self.is_reference(entry))]


def resolve(folder: Path, request: Request) -> Run:
    """Load the profiles and the suite of a request, and plan their servers; writes nothing.

    Raises Problem("profile") for two profiles of one name, also where one is the reference, and for two that serve
    different models; and what the plan of a server raises.
    """
    profiles = [profile.load(name) for name in request.profiles]
    names = [loaded.name for loaded in profiles]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise Problem("profile", f"two profiles have the name {repeated[0]}", "name each once, or rename a file")
    plan_by_name = {loaded.name: make_plan(folder, request, loaded) for loaded in profiles}
    model = plan_by_name[names[0]].model
    suite, skipped_points = load_suite(request, model)
    reference = profile.load(suite.greedy.reference)
    if any(loaded.name == reference.name and loaded != reference for loaded in profiles):
        message = f"the reference of suite {suite.name} is another profile of the name {reference.name}"
        raise Problem("profile", message, "rename the file of one of them")
    if reference.name not in plan_by_name:
        plan_by_name[reference.name] = make_plan(folder, request, reference)
    for name, plan in plan_by_name.items():
        if plan.model != model:
            message = f"profile {name} serves {plan.model.name}, {names[0]} serves {model.name}"
            raise Problem("profile", message, "compare profiles on one model: give --model")
    suite.check_thresholds((*profiles, reference))
    entries = {
        loaded.name: ProfileEntry(
            name=loaded.name,
            description=loaded.description,
            thresholds=suite.thresholds_of(loaded),
            folder=folder / loaded.name,
            profile=loaded,
            plan=plan_by_name[loaded.name],
        )
        for loaded in (*profiles, reference)
    }
    return Run(
        folder=folder,
        request=request,
        suite=suite,
        model=model,
        machine=plan_by_name[names[0]].machine,
        entries=[entries[name] for name in names],
        reference=entries[reference.name],
        skipped_points=skipped_points,
        plan=plan_by_name[names[0]],
    )


def load_suite(request: Request, model: Model) -> tuple[Suite, int]:
    """The suite of a request with its grid, and how many points of the grid a quick run skips."""
    suite = suites.load(request.suite, model.name)
    whole_grid = suite.grid.replaced(request.grid)
    grid = whole_grid.first().replaced(request.grid) if request.quick else whole_grid
    return suite.model_copy(update={"grid": grid}), whole_grid.points - grid.points


def make_plan(folder: Path, request: Request, profile: Profile, extra: dict[str, Argument] | None = None) -> Plan:
    """A plan on a free loopback port, with the run's caches. extra: vLLM arguments beside the profile's."""
    return plans.make(
        profile,
        port=free_port(),
        cache_root=folder / run_folder.CACHE,
        model_path=request.model,
        overrides=request.overrides,
        extra=extra,
    )


def problems(run: Run) -> list[Problem]:
    """Everything that keeps a run from starting, or from resuming the steps in its folder; writes nothing.

    Raises Problem for another run's folder.
    """
    run_folder.check(run.folder, run.request)
    is_new = not (run.folder / PROVENANCE).exists()
    by_message: dict[str, Problem] = {}
    for entry in {entry.name: entry for entry in (*run.entries, run.reference)}.values():
        try:
            digest.check(entry.folder, digest.compute(entry.plan, run.suite))
        except Problem as problem:
            by_message[problem.message] = problem
        if is_new:
            by_message |= {problem.message: problem for problem in preflight.problems(entry.plan, entry.folder)}
    return list(by_message.values())


def measure_entries(
    run: Run,
    command: list[str],
    kind: Callable[..., R],
    measure: Callable[[Entry], None],
    row: Callable[[Entry, FailedStep | None], Strict],
) -> R:
    """Measure the entries of a run one after the other; write `kind` with a `row` of each to run.folder/result.json.

    The reference comes first; the rows are in the order of the request. The result is also written when a measurement
    fails and its error is raised: with the failure, and what was measured before it.
    The folder is locked (run_folder.opened), and problems() is empty.
    """
    _warn_of_load(run)
    _print_certified(run)
    source = step(run.folder / PROVENANCE, Provenance, lambda: provenance.collect(run.machine, command, run.plan))
    failures: dict[str, FailedStep] = {}

    def write_result() -> R:
        result = kind(
            id=run.folder.name,
            provenance=source,
            model=provenance.redacted_model(run.model),
            rows=[row(entry, failures.get(entry.name)) for entry in run.entries],
        )
        with writing(run.folder):
            write(result, run.folder / "result.json")
        return result

    try:
        for entry in sorted(run.entries, key=run.is_reference, reverse=True):
            try:
                measure(entry)
            except Exception as error:
                message = getattr(error, "message", f"{type(error).__name__}: {error}")
                step_name = getattr(error, "step", "preparation")
                failures[entry.name] = FailedStep(step=step_name, message=redaction.redact(message))
                raise
    except BaseException:
        try:
            write_result()
        except Problem as problem:  # the measurement's own error is the one to raise
            run.print_line(f"the result could not be written: {problem.message}")
        raise
    return write_result()


@contextmanager
def in_step(name: str) -> Iterator[None]:
    """Set `error.step` to `name` on an exception of the block, unless an inner block has set it."""
    try:
        yield
    except Exception as error:
        error.step = getattr(error, "step", name)
        raise


def _warn_of_load(run: Run) -> None:
    load, cores = provenance.load_average(), run.machine.cores
    # The average alone also counts what has just ended, such as a set-up.
    if load > cores / 2 and psutil.cpu_percent(BUSY_S) > MAX_BUSY:
        run.print_line(
            f"warning: load average {load:.1f} on {cores} cores: other programs disturb what is measured;"
            " end them, then run this again"
        )


def _print_certified(run: Run) -> None:
    """A line for each profile whose decoder depends on this GPU's certificate."""
    for entry in run.in_order():
        if isinstance(entry, ProfileEntry) and entry.profile.requested_decoder(run.machine.family) == "certified":
            run.print_line(f"{entry.name}: decoder {entry.plan.decoder}: {entry.plan.decoder_reason}")


def free_port() -> int:
    """A port of loopback that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
