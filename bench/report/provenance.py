"""Where a result comes from: machine, versions, commit and load, as text."""

import shlex

from bench.report import markdown as md
from vllm_launch.provenance import Provenance

GIB = 1 << 30
OWN_LOAD = 2  # what our API server and client add to the load average, beside an engine on all cores


def commit(source: Provenance, digits: int | None = None) -> str:
    """The commit, or its first digits, and whether the files were the commit's."""
    if source.git_commit is None:
        return "not known"
    state = {True: " with changes", False: "", None: ", git state not known"}[source.git_dirty]
    return f"{source.git_commit[:digits]}{state}"


def load(source: Provenance, highest: float | None = None) -> str:
    """The load average before the run, and the highest one while rates were measured."""
    before = source.load_average
    parts = [f"{before:.1f} before the run"] if before is not None else []
    parts += [f"at most {highest:.1f} while rates were measured"] if highest is not None else []
    return f"{', '.join(parts)}; {source.machine.cores} cores" if parts else "not recorded"


def load_warning(source: Provenance, highest: float | None) -> str | None:
    """A line of plain text where other work kept the machine busy."""
    cores, before = source.machine.cores, source.load_average
    busy = before is not None and before > cores  # less may be a set-up that had just ended
    if busy or (highest is not None and highest > cores + OWN_LOAD):
        return f"Other work on the machine, speeds may be too low: load average {load(source, highest)}"
    return None


def details(source: Provenance, highest_load: float | None = None) -> list[str]:
    """Blocks: machine, versions, commit and command."""
    machine = source.machine
    device = f"{machine.gpus} GPU, driver {machine.driver}" if machine.gpus else f"{machine.cores} cores"
    rows = [
        ["made", f"{source.created:%Y-%m-%d %H:%M %Z}".strip()],
        ["machine", md.text(f"{machine.name} ({machine.family}), {device}, {machine.total_bytes / GIB:.0f} GiB")],
        ["load average", load(source, highest_load)],
        ["commit", commit(source)],
        ["FlashInfer patch set", md.text(source.patch)],
        ["versions", md.text(", ".join(f"{name} {version}" for name, version in sorted(source.versions.items())))],
        ["command", md.code(shlex.join(source.command)).replace("|", "\\|")],
    ]
    return ["## Provenance", md.table(["", ""], rows)]
