"""Describe this machine: device family, memory, and the processes that use it. Imports neither torch nor vLLM."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pynvml
from pydantic import AliasChoices, Field

from flashinfer_patches.strict import Strict

# Flags of /proc/cpuinfo; a CPU needs all flags of a set: to run vLLM's CPU build, and for its kernels for an FP8 KV
# cache.
CPU_BUILD_FEATURES = ({"avx2", "f16c"},)
CPU_FP8_FEATURES = ({"avx512f", "avx512bw", "avx512dq", "avx512vl"}, {"amx_tile"})


class GpuProcess(Strict):
    """A process that holds GPU memory. used_bytes: 0 if the driver does not report it."""

    pid: int
    used_bytes: int


class Machine(Strict):
    """The device that a server would run on.

    family is `cpu`, or the GPU's compute capability as profiles name it (`sm90`, `sm100`, `sm12x`, ...).
    Memory is the GPU's, or the system's for a CPU and for a GPU that shares the system's memory (`unified`).
    avx2: False for a CPU without AVX2 and F16C, on which vLLM's CPU build does not run; True for a GPU.
    fp8_kernels: False for a CPU with neither AVX-512 nor AMX, for which vLLM has no kernels that read an FP8 KV cache;
    True for a GPU. Older results call it fp8_cache.
    """

    family: str
    name: str
    gpus: int
    driver: str | None
    cores: int
    total_bytes: int
    free_bytes: int
    unified: bool
    gpu_processes: list[GpuProcess]
    avx2: bool = True
    fp8_kernels: bool = Field(default=True, validation_alias=AliasChoices("fp8_kernels", "fp8_cache"))


def family_of(major: int, minor: int) -> str:
    """The family name of a compute capability: 9.0 -> sm90, 10.x -> sm100, 12.x -> sm12x, 8.9 -> sm89."""
    if major == 12:
        return "sm12x"
    if major == 10:
        return "sm100"
    return f"sm{major}{minor}"


def detect(device: str) -> Machine:
    """The machine as `device` ("cpu" or "gpu") sees it; raises LookupError without a GPU."""
    return _gpu() if device == "gpu" else _cpu()


def capability_and_cuda() -> tuple[str, tuple[int, int]]:
    """Compute capability of the first GPU ("9.0"), and the newest CUDA release that its driver runs ((13, 0)).

    Raises LookupError if no driver answers.
    """
    with _nvml():
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(0))
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return f"{major}.{minor}", (cuda // 1000, cuda % 1000 // 10)


@contextmanager
def _nvml() -> Iterator[None]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise LookupError(f"no NVIDIA driver answers ({error})") from error
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _cpu() -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        family="cpu",
        name=_cpu_name(),
        gpus=0,
        driver=None,
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        total_bytes=memory.total,
        free_bytes=memory.available,
        unified=False,
        gpu_processes=[],
        avx2=_has_any(CPU_BUILD_FEATURES),
        fp8_kernels=_has_any(CPU_FP8_FEATURES),
    )


def _gpu() -> Machine:
    with _nvml():
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise LookupError("the NVIDIA driver shows no GPU")
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        total, free, unified = _gpu_memory(gpu)
        return Machine(
            family=family_of(*pynvml.nvmlDeviceGetCudaComputeCapability(gpu)),
            name=pynvml.nvmlDeviceGetName(gpu),
            gpus=count,
            driver=pynvml.nvmlSystemGetDriverVersion(),
            cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
            total_bytes=total,
            free_bytes=free,
            unified=unified,
            gpu_processes=_gpu_processes(gpu),
        )


def _gpu_processes(gpu) -> list[GpuProcess]:
    try:
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    except pynvml.NVMLError:
        return []  # not supported in some containers
    return [GpuProcess(pid=process.pid, used_bytes=process.usedGpuMemory or 0) for process in running]


def _gpu_memory(gpu) -> tuple[int, int, bool]:
    # A GPU that shares the system's memory (DGX Spark) has none of its own to report.
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        return memory.total, memory.free, False
    except pynvml.NVMLError_NotSupported:
        system = psutil.virtual_memory()
        return system.total, system.available, True


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.machine()


def _has_any(feature_sets: tuple[set[str], ...]) -> bool:
    """Whether the CPU has all features of any of the sets."""
    features = set(_cpuinfo("flags").split())
    return any(required <= features for required in feature_sets)


def _cpuinfo(key: str) -> str:
    """A value of the first CPU in /proc/cpuinfo; empty without that key."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return ""
