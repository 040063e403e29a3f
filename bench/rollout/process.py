"""One cell in a process of its own: a script of the world model gets a task as JSON, and leaves frames and records.

The wheel imports no example: `SCRIPT TASK.json` is all that is known of the model. The task has Task's fields; the
files are written beside it. For each mode MODE.safetensors (`frames`, fp32 [clips, frames - context, colours, height,
width], and `range`, low and high) and MODE.json, the record of the rollout. With `speed` speed.json, the record of a
free-running rollout of the first clip alone; with `truth` truth.safetensors, the clips; with `profile` profile.json
(`result.Profiled`). Settings that the script refuses are exit code 2, with the reason as the last line of its output.
"""

import os
import secrets
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import Field

from bench.record import files
from bench.rollout.sweep import Settings
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Count, Strict
from vllm_launch.marks import NONCE_VARIABLE
from vllm_launch.plan import CACHE_VARIABLES, FIXED_ENVIRONMENT, inherited_environment
from vllm_launch.redaction import REPO, redact
from vllm_launch.server import supervised

Mode = Literal["teacher-forced", "free-running"]
MODES: tuple[Mode, ...] = ("teacher-forced", "free-running")
REFUSED = 2  # exit code of the script
LIMIT_S, GRACE_S, POLL_S = 3600.0, 10.0, 0.1
REASON_CHARACTERS = 300
OURS = "FP8_SINKS_", "OWL_"  # prefixes of variables that would change a rollout


class Task(Strict):
    """A rollout. checkpoint: None is the script's own. shuffled: each clip gets the controls of another one."""

    checkpoint: str | None
    device: Literal["cpu", "cuda"]
    settings: Settings
    clips: Count
    frames: Count
    context: Count
    clip_seed: int
    seed: int
    modes: list[Mode] = Field(default_factory=lambda: [*MODES])
    shuffled: bool = False
    speed: bool = True
    truth: bool = False
    profile: bool = False


class ProcessFailed(Exception):
    """The process refused its settings, died or hung; the text says why."""


def execute(script: Path, task: Task, folder: Path, cache: Path) -> None:
    """Run the script on a task, and wait; its files are in `folder` then. Raises ProcessFailed."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write(task, folder / "task.json")
    command = [sys.executable, str(script), str((folder / "task.json").resolve())]
    run(command, folder.with_suffix(".log"), environment(cache, script.parent))


def run(command: list[str], log: Path, variables: dict[str, str]) -> None:
    """Run a command under the supervisor until it ends. Raises ProcessFailed."""
    offset, end = log.stat().st_size if log.exists() else 0, time.monotonic() + LIMIT_S
    with supervised(command, variables, log, GRACE_S) as supervisor:
        while supervisor.poll() is None:
            if time.monotonic() > end:
                raise ProcessFailed(f"not finished after {LIMIT_S:.0f} s")
            time.sleep(POLL_S)
    if supervisor.returncode:
        lines = log.read_bytes()[offset:].decode(errors="replace").strip().splitlines()
        reason = redact(lines[-1].strip())[:REASON_CHARACTERS] if lines else "no output"
        outcome = "refused" if supervisor.returncode == REFUSED else f"exit code {supervisor.returncode}"
        raise ProcessFailed(f"{outcome}: {reason}")


def environment(cache: Path, *modules: Path) -> dict[str, str]:
    """The caller's environment without OURS, with the run's caches, this checkout first and then folders of modules."""
    inherited = {name: value for name, value in inherited_environment().items() if not name.startswith(OURS)}
    caches = {name: str(cache.resolve() / folder) for name, folder in CACHE_VARIABLES.items()}
    Path(caches["CUDA_CACHE_PATH"]).mkdir(parents=True, exist_ok=True)  # the driver may not create it
    inherited_paths = [Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = map(str, [REPO, *modules, *inherited_paths])
    fixed = {name: value for name, value in FIXED_ENVIRONMENT.items() if not name.startswith(OURS)}
    process = {"PYTHONPATH": os.pathsep.join(paths), NONCE_VARIABLE: f"fp8-sinks-{secrets.token_hex(8)}"}
    return inherited | fixed | caches | process
