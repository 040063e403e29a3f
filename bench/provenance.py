"""Where a result comes from: machine, versions, commit and command, with nothing that names this machine."""

import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.result import Provenance
from flashinfer_patches import engine, package
from vllm_launch import software
from vllm_launch.machine import Machine
from vllm_launch.model import Model

REPO = Path(__file__).resolve().parent.parent


def collect(machine: Machine, command: list[str]) -> Provenance:
    """Provenance of a run that starts now on `machine` by `command`."""
    commit = _git("rev-parse", "HEAD")
    return Provenance(
        created=datetime.now(UTC).replace(microsecond=0),
        machine=machine,
        versions={"python": platform.python_version()} | software.versions(),
        patch=_patch(),
        git_commit=commit,
        git_dirty=bool(commit and _git("status", "--porcelain")),
        command=[redact(word) for word in command],
    )


def redact(text: str) -> str:
    """Checkout, environment, temporary and home folders replaced by $REPO, $ENV, $TMP and ~."""
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
    """redact() on every string in nested lists and maps."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_all(item) for item in value]
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    return value


def redacted_model(model: Model) -> Model:
    """The model without the folder that it lies in on this machine."""
    return model.model_copy(update={"path": redact(model.path)})


def _patch() -> str:
    """The installed FlashInfer's patch set; "none" for a stock one or none at all; else what is wrong with it."""
    if package.installed() is None:
        return "none"
    found = engine.status()
    return "none" if found.state in ("clean", "unknown version") else found.patch_set or found.state


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPO, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
