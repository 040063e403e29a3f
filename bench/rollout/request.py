"""What a run of the rollout bench measures, and what a resumed run must find unchanged."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.record import run_folder
from bench.rollout.sweep import Settings, Sweep
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import machine, provenance
from vllm_launch.provenance import Provenance
from vllm_launch.redaction import REPO
from vllm_launch.terminal import Step

SCRIPT = REPO / "examples" / "world_model" / "cell.py"
MX_FAMILIES = ("sm100", "sm12x")  # GPUs with MX units


class RolloutRequest(Strict):
    """Saved in the run's folder. script: of the world model, run once a cell; checkpoint: None is the script's own."""

    kind: Literal["rollout"]
    sweep: Sweep
    script: str
    checkpoint: str | None


class Origin(Strict):
    """Where a run started. checkpoint, script: sha256 of the files."""

    provenance: Provenance
    code: str
    checkpoint: str | None
    script: str


@dataclass(frozen=True)
class RolloutRun:
    """A run on a device. family: of the machine. status, print_line, show_steps: as in terminal.Display."""

    folder: Path
    request: RolloutRequest
    device: Literal["cpu", "cuda"]
    family: str
    status: Callable[[str], None] = print
    print_line: Callable[[str], None] = print
    show_steps: Callable[[list[Step]], None] = print

    @property
    def sweep(self) -> Sweep:
        return self.request.sweep

    @property
    def cache(self) -> Path:
        return self.folder / run_folder.CACHE


def resolve(folder: Path, request: RolloutRequest) -> RolloutRun:
    """On the first GPU, else on the CPU; writes nothing."""
    try:
        return RolloutRun(folder, request, "cuda", machine.detect("gpu").family)
    except LookupError:
        return RolloutRun(folder, request, "cpu", "cpu")


def settings_on(family: str, settings: Settings) -> Settings:
    """A cell's settings on a machine: without MX units MX is emulated, and judged by its accuracy alone."""
    if settings.get("mxfp_enable") and "mxfp_kernel" not in settings and family not in MX_FAMILIES:
        return settings | {"mxfp_kernel": "emulated"}
    return settings


def check(run: RolloutRun) -> None:
    """Raise Problem for a folder, a script or a checkpoint that a run cannot use; writes nothing."""
    run_folder.check(run.folder, run.request)
    for name, path in (("script", run.request.script), ("checkpoint", run.request.checkpoint)):
        if path and not Path(path).is_file():
            raise Problem("file", f"no {name} {path}", f"name one with --{name}; a checkout has its own")


def origin(run: RolloutRun, command: list[str]) -> Origin:
    hashes = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for name, path in (("script", run.request.script), ("checkpoint", run.request.checkpoint))
        if path
    }
    source = provenance.collect(machine.detect("gpu" if run.device == "cuda" else "cpu"), command)
    return Origin(provenance=source, code=provenance.code_state(), **{"checkpoint": None} | hashes)


def check_unchanged(before: Origin, current: Origin) -> None:
    """Raise Problem("software") for another machine, release, commit or model: drops are paired within a run."""
    sides = [_conditions(each) for each in (before, current)]
    if changed := [name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)]:
        earlier, later = (", ".join(f"{name} {side.get(name)}" for name in changed) for side in sides)
        message = f"this run started with {earlier}; now there is {later}"
        raise Problem("software", message, "restore what it started with, or start a new run: another --run-dir")


def _conditions(source: Origin) -> dict[str, str | None]:
    hardware = source.provenance.machine
    files = {"script": source.script, "checkpoint": source.checkpoint}
    return (
        {"machine": hardware.name, "driver": hardware.driver, "commit": source.code}
        | files
        | source.provenance.versions
    )
