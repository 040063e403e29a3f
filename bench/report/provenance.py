"""Where a result comes from: machine, versions, commit and load, as text."""

import shlex
import textwrap

from bench.report import markdown as md
from vllm_launch.provenance import Provenance

GIB = 1 << 30
DIGITS = 10  # of a commit
OWN_LOAD = 2  # what our API server and client add to the load average, beside an engine on all cores


def commit(source: Provenance) -> str:
    """The first digits of the commit, and whether the files were the commit's."""
    if source.git_commit is None:
        return "not known"
    state = {True: " with changes", False: "", None: ", git state not known"}[source.git_dirty]
    return f"{source.git_commit[:DIGITS]}{state}"


def load_warning(source: Provenance, highest: float | None) -> str | None:
    """A line of plain text where other work kept the machine busy. highest: load average while rates were measured."""
    before, during, cores = source.load_average or 0, highest or 0, source.machine.cores
    if before <= cores and during <= cores + OWN_LOAD:  # a set-up that has just ended leaves a load before the run
        return None
    return f"Other work on the machine, speeds may be too low: load average {max(before, during):.1f}, {cores} cores"


def details(source: Provenance) -> list[str]:
    """Blocks: machine, versions, commit and command."""
    machine = source.machine
    device = f"{machine.gpus} GPU, driver {machine.driver}" if machine.gpus else f"{machine.cores} cores"
    rows = {
        "made": f"{source.created:%Y-%m-%d %H:%M %Z}".strip(),
        "machine": f"{machine.name} ({machine.family}), {device}, {machine.total_bytes / GIB:.0f} GiB",
        "commit": commit(source),
        "FlashInfer patch set": source.patch,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(source.versions.items())),
    }
    table = md.table(["", ""], [[name, md.text(line)] for name, line in rows.items()])
    return ["## Provenance", textwrap.indent(shlex.join(source.command), "    "), table]
