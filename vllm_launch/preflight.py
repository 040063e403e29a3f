"""Check that a plan can run on this machine, before anything is loaded; every problem has a remedy."""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import psutil

from flashinfer_patches.errors import Problem
from vllm_launch import decoder_checks, plugin, software
from vllm_launch.decoder import contract
from vllm_launch.machine import Machine
from vllm_launch.plan import Plan, child_environment, is_loopback
from vllm_launch.profile import Device

GIB = 1 << 30
HEADER_VALUE = re.compile("[!-~]([ -~]*[!-~])?")
# Memory of vLLM's CPU processes beside weights and KV cache, as measured (2.4 GB with 1 GiB of KV).
CPU_OVERHEAD_BYTES = int(1.6 * GIB)
SPACE = "VLLM_CPU_KVCACHE_SPACE"
RUN_FOLDER_BYTES = GIB // 2
# With any other dtype the CPU build starts too, answers like BF16, and writes past its buffer.
CPU_KV_DTYPES = ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", contract.INT8)
TOO_OLD_CPU = "use an x86-64 CPU with AVX2 and F16C (Intel Haswell or AMD Zen, and later), or a machine with a GPU"


def problems(plan: Plan, run_folder: Path, *, expose: bool = False) -> list[Problem]:
    """Every reason why `plan` cannot run here, most basic first; empty if it can. Leaves nothing behind."""
    checks: list[Callable[[], None]] = [
        software.check_python,
        lambda: software.check_installed(child_environment(plan)),
        lambda: software.check_libraries(plan.device),
        lambda: _sinks(plan),
        lambda: _cpu(plan),
        lambda: _kv_dtype(plan),
        *(partial(check, plan) for check in decoder_checks.CHECKS),
        lambda: _address(plan, expose),
        lambda: _folder(run_folder),
        lambda: _folder(Path(plan.cache_root)),
        lambda: _memory(plan),
    ]
    failures = []
    for check in checks:
        try:
            check()
        except Problem as problem:
            failures.append(problem)
    return failures


def _sinks(plan: Plan) -> None:
    if not plan.model.has_sinks:
        raise Problem(
            "model",
            f"{plan.model.name} ({plan.model.architecture}) has no attention sinks (no tensor named *.sinks)",
            "give --model a gpt-oss model; for others use vLLM directly",
        )


def _cpu(plan: Plan) -> None:
    if plan.device != "cpu":
        return
    if not plan.machine.avx2:
        raise Problem("software", f"vLLM's CPU build does not run on this CPU ({plan.machine.name})", TOO_OLD_CPU)
    check_cpu_attention(plan.machine, child_environment(plan))


def check_cpu_attention(machine: Machine, environment: Mapping[str, str]) -> None:
    """Raise Problem("software") if `environment` requests an unknown CPU attention, or one for another CPU."""
    try:
        requested = plugin.requested_cpu_attention(environment)
    except ValueError as error:
        raise Problem("software", str(error), f"unset {plugin.CPU_ATTENTION}: the plugin then chooses") from error
    if requested == "native" and not machine.fp8_kernels:
        raise Problem(
            "software",
            f"{plugin.CPU_ATTENTION}=native: this CPU ({machine.name}) has neither AVX-512 nor AMX, which vLLM's"
            " FP8 kernels need",
            f"unset {plugin.CPU_ATTENTION}: the plugin then chooses",
        )


def _kv_dtype(plan: Plan) -> None:
    if plan.device == "cpu" and plan.kv_cache_dtype not in CPU_KV_DTYPES:
        raise Problem(
            "profile",
            f"--kv-cache-dtype {plan.kv_cache_dtype}: vLLM's CPU kernel writes past the buffer with it",
            f"use one of {', '.join(CPU_KV_DTYPES)}",
        )


def _address(plan: Plan, expose: bool) -> None:
    if not plan.host.strip():
        raise Problem("address", "--host is empty", "name an address, such as 127.0.0.1")
    if not is_loopback(plan.host):
        if not expose:
            raise Problem("address", f"--host {plan.host} opens the server to others", "use 127.0.0.1, or add --expose")
        if not os.environ.get("VLLM_API_KEY", "").strip():
            raise Problem(
                "address",
                "--expose without a key: any client could use the server",
                "set VLLM_API_KEY in the environment",
            )
        if not HEADER_VALUE.fullmatch(os.environ["VLLM_API_KEY"]):
            raise Problem(
                "address",
                "VLLM_API_KEY has characters that are not allowed in an HTTP header",
                "use printable ASCII without a space at either end",
            )
    if reason := cannot_listen(plan.host, plan.port):
        raise Problem(
            "address",
            f"cannot listen on {plan.host}:{plan.port}: {reason}",
            "stop the process that listens there, or choose another --port",
        )


def cannot_listen(host: str, port: int) -> str | None:
    """The system's reason why a server cannot listen on this address; None if it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
        except (OverflowError, ValueError) as error:  # not a port, or not a host's name
            return str(error)
    return None


def existing(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def cannot_write(folder: Path) -> str | None:
    """The system's reason why a folder, or the parent that it would be created in, cannot be written; None if it can.

    Creates and removes a temporary folder, since permissions do not show a read-only disk.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".fp8-sinks-", dir=existing(folder)):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _folder(folder: Path) -> None:
    folder = folder.absolute()
    if reason := cannot_write(folder):
        raise Problem(
            "disk", f"cannot write into {folder}: {reason}", "choose another folder, or change its permissions"
        )
    free = shutil.disk_usage(existing(folder)).free
    if free < RUN_FOLDER_BYTES:
        raise Problem(
            "disk",
            f"{folder} has {free / GIB:.2f} GiB free, needs {RUN_FOLDER_BYTES / GIB:.1f}",
            "free some space, or choose another folder",
        )


def _memory(plan: Plan) -> None:
    machine, weights = plan.machine, plan.model.weight_bytes
    needed, detail = needed_bytes(plan.device, weights, machine.total_bytes, plan.arguments, child_environment(plan))
    lack = lacking(plan.device, weights, needed, machine.free_bytes)
    if lack == "share":
        raise Problem(
            "memory",
            f"{plan.model.name}: weights of {weights / GIB:.1f} GiB do not fit into {detail}",
            "raise --gpu-memory-utilization, or give --model a smaller one such as openai/gpt-oss-20b",
        )
    if lack == "free":
        programs = [program(process.pid, process.used_bytes) for process in machine.gpu_processes]
        users = ", ".join(programs) or "processes that the driver does not name"
        raise Problem(
            "memory",
            f"{machine.name}: {machine.free_bytes / GIB:.1f} GiB free, needs {needed / GIB:.1f} ({detail})"
            + (f"; in use by {users}" if plan.device == "gpu" else ""),
            "end other programs, or give --model a smaller one"
            if plan.device == "cpu"
            else "end those processes, or lower --gpu-memory-utilization",
        )


def lacking(device: Device, weight_bytes: int, needed: int, free_bytes: int) -> Literal["share", "free"] | None:
    """The memory that a server lacks: a "share" of the GPU as large as its weights, or "free" memory; else None."""
    if device == "gpu" and weight_bytes > needed:
        return "share"
    return "free" if free_bytes < needed else None


def needed_bytes(
    device: Device, weight_bytes: int, total_bytes: int, arguments: Mapping, environment: Mapping[str, str]
) -> tuple[int, str]:
    """Memory that a server takes of a device with `total_bytes`, and how it is made up.

    Raises Problem("profile") for settings that are not valid numbers.
    """
    share = _number(
        "gpu-memory-utilization", arguments.get("gpu-memory-utilization", 0.9), float, 1, "above 0, up to 1"
    )
    if device == "cpu" and SPACE in environment:
        gib = _number(SPACE, environment[SPACE], int, 1 << 20, "a whole number of GiB from 1")
        parts = {"weights": weight_bytes, "KV cache": gib * GIB, "vLLM": CPU_OVERHEAD_BYTES}
        return sum(parts.values()), " + ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items()) + " GiB"
    return int(share * total_bytes), f"{share:.0%} of {total_bytes / GIB:.0f} GiB"


def _number(name: str, value: object, kind: type, most: int, expected: str):
    """Parse a setting as a number in (0, most], as vLLM does from text."""
    try:
        number = kind(value if not isinstance(value, bool) else "")
    except (TypeError, ValueError):
        number = 0
    if not 0 < number <= most:
        raise Problem(
            "profile", f"{name} is {value!r}, expected {expected}", f"correct {name} in the profile or after --"
        )
    return number


def program(pid: int, used_bytes: int) -> str:
    """Describe a process and the memory that it holds."""
    try:
        name = psutil.Process(pid).name()
    except psutil.Error:
        name = "?"
    return f"{name} (pid {pid}, {used_bytes / GIB:.1f} GiB)"
