"""Helpers for tests of the scripts: a copy of the files that they need, and a fake Python that installs nothing."""

import os
import shutil
import subprocess
from pathlib import Path

from vllm_launch.provenance import REPO

# A fake Python: makes an "environment" with itself in it, and logs the arguments and variables of each pip call.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
*"-m venv "*)
    mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python"
    for program in fp8-sinks ruff lint-imports; do
        printf '#!/bin/bash\\necho "$0 $*"\\n' >"${@: -1}/bin/$program" && chmod +x "${@: -1}/bin/$program"
    done
    ${KILL_SETUP:+kill -9 $PPID}
    ;;
*"pip config"*) echo "$FAKE_PIP_CONFIG" ;;
*"pip install"*) echo "path=$PYTHONPATH home=$PYTHONHOME $*" >>"$CALLS"; exit "${FAKE_PIP_EXIT:-0}" ;;
*check_machine*) echo "$*" >>"${CHECKED:-/dev/null}"; exit "${FAKE_CHECK_EXIT:-0}" ;;
esac
"""


def make_checkout(folder: Path) -> Path:
    """Make a folder with the Makefile, the scripts and the locks."""
    folder.mkdir()
    for name in ("scripts", "locks"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPO / name, folder / name)
    return folder


def make_program(path: Path, text: str = FAKE_PYTHON) -> Path:
    """Write an executable script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_in(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a checkout, by default for the CPU and with the fake Python."""
    python = make_program(checkout.parent / "fakes" / "python")
    inherited = {name: value for name, value in os.environ.items() if name not in ("VENV", "VLLM", "MAKEFLAGS")}
    defaults = {"DEVICE": "cpu", "PYTHON": str(python), "CALLS": str(checkout.parent / "calls")}
    options = {"capture_output": True, "text": True, "cwd": checkout}
    return subprocess.run(command, env=inherited | defaults | environment, **options)


def pip_calls(checkout: Path) -> list[str]:
    """Read the log of the fake Python: a line for each `pip install`."""
    calls = checkout.parent / "calls"
    return calls.read_text().splitlines() if calls.exists() else []
