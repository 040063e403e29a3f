"""Provenance of a result: machine, versions, commit and command, without anything that names this machine."""

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from flashinfer_patches import engine, package
from flashinfer_patches.strict import NotNegative, Strict
from vllm_launch import software
from vllm_launch.machine import Machine
from vllm_launch.model import Model
from vllm_launch.plan import Plan, child_environment
from vllm_launch.redaction import REPO, is_secret, redact, redact_all

# Prefixes of the inherited variables that change what a server does.
RECORDED = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "VLLM_", "CUDA_", "CUBLAS_", "NCCL_", "TORCH")
RECORDED += ("PYTORCH_", "TRITON_", "FLASHINFER_", "HF_", "TRANSFORMERS_", "FP8_SINKS_CPU_", "LD_PRELOAD")
RECORDED += ("NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES")  # other NVIDIA_* are labels of container images


class Provenance(Strict):
    """Where and how a result was made; folders are replaced by $REPO, $ENV, ~ and $TMP, and no host is named.

    git_dirty: None if git cannot tell. environment: inherited variables that change what a server does.
    load_average: of the machine over the minute before the run, None in results that did not record it.
    """

    created: datetime
    machine: Machine
    versions: dict[str, str]
    patch: Annotated[str, Field(description="'none', the id of FlashInfer's patch set, or its state if neither")]
    git_commit: str | None
    git_dirty: bool | None
    command: list[str]
    environment: dict[str, str] = Field(default_factory=dict)
    load_average: NotNegative | None = None


def collect(machine: Machine, command: list[str], plan: Plan | None = None) -> Provenance:
    """Record the provenance of a run that starts now. plan: of one of its servers, if it has any."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return Provenance(
        created=datetime.now(UTC).replace(microsecond=0),
        machine=machine,
        versions=versions(),
        patch=patch(),
        git_commit=commit,
        git_dirty=None if status is None else bool(status),
        command=redact_all(command),
        environment=inherited(plan),
        load_average=load_average(),
    )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result records."""
    return {"python": platform.python_version()} | software.versions()


def inherited(plan: Plan | None) -> dict[str, str]:
    """The RECORDED variables that a server of `plan` inherits beside the plan's own, without secrets.

    Without a plan, those of this process.
    """
    planned = plan.environment if plan else {}
    environment = child_environment(plan) if plan else os.environ
    names = [name for name in sorted(environment) if name.startswith(RECORDED) and name not in planned]
    return {name: redact(environment[name]) for name in names if not is_secret(name)}


def load_average() -> float:
    """The machine's load over the last minute."""
    return round(os.getloadavg()[0], 2)


def redacted_model(model: Model) -> Model:
    """The model without its folder on this machine."""
    return model.model_copy(update={"path": redact(model.path)})


def patch() -> str:
    """The id of FlashInfer's patch set, "none", or the state of a FlashInfer that is partly patched or edited."""
    if package.installed() is None:
        return "none"
    status = engine.status()
    return "none" if status.state in ("clean", "unknown version") else status.patch_set or status.state


def code_state() -> str:
    """The commit of this code, with a hash of uncommitted changes to tracked files; "unknown" if git cannot tell."""
    commit, changes = _git("rev-parse", "HEAD"), _git("diff", "--no-ext-diff", "--binary", "HEAD")
    if commit is None or changes is None:
        return "unknown"
    return f"{commit} with changes {hashlib.sha256(changes.encode()).hexdigest()[:16]}" if changes else commit


def _git(*arguments: str) -> str | None:
    """Run git in this checkout; None if it fails, or if the code lies within another repository."""
    if _git_output("rev-parse", "--show-toplevel") != str(REPO):
        return None
    return _git_output(*arguments)


def _git_output(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        process = subprocess.run(command, cwd=REPO, capture_output=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
