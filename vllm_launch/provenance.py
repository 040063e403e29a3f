"""Where a result comes from: machine, versions, commit and command, with nothing that names this machine."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flashinfer_patches import engine, package
from flashinfer_patches.strict import NotNegative, Strict
from vllm_launch import software
from vllm_launch.machine import Machine
from vllm_launch.model import Model
from vllm_launch.plan import Plan, child_environment
from vllm_launch.secret_names import is_secret


class Provenance(Strict):
    """Where and how a result was made; paths are replaced by $REPO, $ENV, ~ and $TMP, and no host is named.

    git_dirty: None where git could not tell. environment: inherited variables that change what a server does.
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


REPO = Path(__file__).resolve().parent.parent
# Inherited variables that change what a server does, by how their names begin.
RECORDED = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "VLLM_", "CUDA_", "CUBLAS_", "NCCL_", "TORCH")
RECORDED += ("PYTORCH_", "TRITON_", "FLASHINFER_", "HF_", "TRANSFORMERS_", "FP8_SINKS_CPU_", "LD_PRELOAD")
RECORDED += ("NVIDIA_TF32_OVERRIDE", "NVIDIA_VISIBLE_DEVICES")  # its others are labels of container images
MASK = "***"
SHORTEST_SECRET = 8  # a shorter value may be part of any word


def collect(machine: Machine, command: list[str], plan: Plan | None = None) -> Provenance:
    """Provenance of a run that starts now on `machine` by `command`. plan: of a server of it, if it has any."""
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
    """Versions of Python and of the packages that a result records."""
    return {"python": platform.python_version()} | software.versions()


def inherited(plan: Plan | None) -> dict[str, str]:
    """Variables that change what runs: those of RECORDED that a server gets beside its plan's, without secrets.

    Without a plan those of this process.
    """
    planned = plan.environment if plan else {}
    environment = child_environment(plan) if plan else os.environ
    names = [name for name in sorted(environment) if name.startswith(RECORDED) and name not in planned]
    return {name: redact(environment[name]) for name in names if not is_secret(name)}


def load_average() -> float:
    """Of the machine, over the last minute."""
    return round(os.getloadavg()[0], 2)


def redact(text: str) -> str:
    """Checkout, environment, temporary and home folders replaced by $REPO, $ENV, $TMP and ~, secrets by MASK."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, MASK)
    places = {
        str(REPO): "$REPO",
        sys.prefix: "$ENV",
        str(Path(tempfile.gettempdir()).resolve()): "$TMP",
        str(Path.home()): "~",
    }
    # The longest first: an environment inside the checkout is still $ENV.
    for place in sorted(places, key=len, reverse=True):
        if place != os.sep:
            # A whole folder: not the beginning of another one's name.
            text = re.sub(rf"{re.escape(place)}(?!\w|[.-]\w)", lambda _, name=places[place]: name, text)
    return text


def redact_all(value):
    """masked() and redact() on every string in nested lists and maps."""
    return _each_text(masked(value), redact)


def masked(value):
    """Nested lists and maps with MASK for every value that the name of a secret stands before.

    A list may be the words of a command: `--name value`, `--name=value`, `NAME=value` and JSON are understood.
    """
    if isinstance(value, dict):
        return {key: MASK if is_secret(key) else masked(item) for key, item in value.items()}
    return _masked_words(value) if isinstance(value, list) else value


def _masked_words(words: list) -> list:
    result, after_secret = [], False
    for word in words:
        if not isinstance(word, str):
            result.append(masked(word))
            continue
        name, equals, _ = word.partition("=")
        secret = re.fullmatch(r"[-\w]+", name) and is_secret(name)
        if re.match("-{1,2}[A-Za-z]", word):
            after_secret = secret and not equals
            result.append(f"{name}={MASK}" if secret and equals else word)
        elif after_secret or (secret and equals):
            result.append(MASK)
        else:
            result.append(_masked_json(word))
    return result


def _masked_json(word: str) -> str:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    hidden = masked(value)
    return word if hidden == value else json.dumps(hidden, separators=(",", ":"))


def _each_text(value, change: Callable[[str], str]):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    return value


def redacted_model(model: Model) -> Model:
    """The model without the folder that it lies in on this machine."""
    return model.model_copy(update={"path": redact(model.path)})


def patch() -> str:
    """The installed FlashInfer's patch set; "none" for a stock one or none at all; else what is wrong with it."""
    if package.installed() is None:
        return "none"
    found = engine.status()
    return "none" if found.state in ("clean", "unknown version") else found.patch_set or found.state


def code_state() -> str:
    """The commit of this code, with a hash of what tracked files differ in from it; "unknown" where git cannot tell."""
    commit, changes = _git("rev-parse", "HEAD"), _git("diff", "--no-ext-diff", "--binary", "HEAD")
    if commit is None or changes is None:
        return "unknown"
    return f"{commit} with changes {hashlib.sha256(changes.encode()).hexdigest()[:16]}" if changes else commit


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where it cannot, or where the code lies within another repository."""
    if _git_output("rev-parse", "--show-toplevel") != str(REPO):
        return None
    return _git_output(*arguments)


def _git_output(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
