"""Problems that planning and preflight report: one line, a remedy, a kind; nothing is started."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch import machines
from kernels_tests.vllm_launch.machines import GIB
from vllm_launch import model, plan, preflight, profile, server, software
from vllm_launch.machine import GpuProcess, family_of
from vllm_launch.plugin import CPU_ATTENTION
from vllm_launch.redaction import REPO

CPU = machines.HOST
CHECK_LIBRARIES = software.check_libraries
H200 = machines.H200.model_copy(update={"gpu_processes": [GpuProcess(pid=os.getpid(), used_bytes=60 * GIB)]})


def kinds(problems):
    return [problem.kind for problem in problems]


def test_a_good_plan_has_no_problems(make_plan, tmp_path):
    assert preflight.problems(make_plan(), tmp_path) == []


def test_a_model_without_sinks(make_plan, tmp_path, model_folder):
    folder = model_folder(names=["model.layers.0.self_attn.q_proj.weight"])
    (problem,) = preflight.problems(make_plan(folder=folder), tmp_path)
    assert problem.kind == "model" and "no attention sinks" in problem.message


@pytest.mark.parametrize("path", ["/no/such/folder", "owner/name-that-is-not-cached", "plainname"])
def test_a_missing_model(path):
    with pytest.raises(Problem) as caught:
        model.find(path)
    assert caught.value.kind == "model" and "--model" in caught.value.remedy


def test_a_broken_model_folder(model_folder):
    folder = model_folder()
    (folder / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(Problem, match="cannot read"):
        model.find(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-1.safetensors"}}))
    with pytest.raises(Problem, match=r"part-1\.safetensors"):
        model.find(str(folder))
    (folder / "config.json").write_text('{"architectures": [')
    with pytest.raises(Problem, match="cannot read"):
        model.find(str(folder))


@pytest.mark.parametrize("dtype", ["int4_per_token_head", "nvfp4", "fp8_per_token_head", "float16"])
def test_kv_dtypes_that_write_past_the_cpu_buffer_are_refused(make_plan, tmp_path, dtype):
    (problem,) = preflight.problems(make_plan(overrides=["--kv-cache-dtype", dtype]), tmp_path)
    assert problem.kind == "profile" and dtype in problem.message


@pytest.mark.parametrize("name", ["baseline", "fp8", "fp8-skip-sliding", "int8"])
def test_a_cpu_without_fp8_kernels_has_an_fp8_cache(make_plan, tmp_path, name):
    assert preflight.problems(make_plan(CPU.model_copy(update={"fp8_kernels": False}), name=name), tmp_path) == []


def test_a_cpu_that_vllm_does_not_run_on_is_refused(make_plan, tmp_path):
    old = CPU.model_copy(update={"avx2": False, "fp8_kernels": False})
    (problem,) = preflight.problems(make_plan(old, name="baseline"), tmp_path)
    assert problem.kind == "software" and "AVX2" in problem.remedy


@pytest.mark.parametrize(
    ("requested", "fp8_kernels", "refused"),
    [("widened", True, False), ("native", True, False), ("native", False, True), ("fast", True, True)],
)
def test_an_unavailable_cpu_attention_is_refused(make_plan, tmp_path, monkeypatch, requested, fp8_kernels, refused):
    monkeypatch.setenv(CPU_ATTENTION, requested)
    problems = preflight.problems(make_plan(CPU.model_copy(update={"fp8_kernels": fp8_kernels})), tmp_path)
    assert kinds(problems) == ["software"] * refused
    assert all(f"{CPU_ATTENTION}={requested}" in problem.message for problem in problems)


def test_a_taken_port(make_plan, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (problem,) = preflight.problems(make_plan(port=taken.getsockname()[1]), tmp_path)
    assert problem.kind == "address" and "--port" in problem.remedy


def test_another_host_needs_expose_and_a_key(make_plan, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    opened = make_plan(host="0.0.0.0")
    assert kinds(preflight.problems(opened, tmp_path)) == ["address"]
    assert "VLLM_API_KEY" in preflight.problems(opened, tmp_path, expose=True)[0].remedy
    monkeypatch.setenv("VLLM_API_KEY", "secret-key")
    assert preflight.problems(opened, tmp_path, expose=True) == []
    assert "secret-key" not in plan.as_shell(opened)
    assert plan.child_environment(opened)["VLLM_API_KEY"] == "secret-key"
    assert "VLLM_API_KEY" not in plan.child_environment(make_plan(folder=opened.model.path))


@pytest.mark.parametrize("key", ["k\n", " k", "k ", "\u043a\u043b\u044e\u0447", "k\tk"])
def test_a_key_that_is_no_header_value_is_refused(make_plan, tmp_path, monkeypatch, key):
    monkeypatch.setenv("VLLM_API_KEY", key)
    (problem,) = preflight.problems(make_plan(host="0.0.0.0"), tmp_path, expose=True)
    assert problem.kind == "address" and "VLLM_API_KEY" in problem.message and key not in problem.message.split()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback(host):
    assert plan.is_loopback(host)


EXPOSED = [
    "0.0.0.0",
    "0",
    "::",
    "",
    " ",
    "localhost.evil.example",
    "LOCALHOST.",
    "127.1",
    "0x7f000001",
    "2130706433",
]
EXPOSED += ["127.0.0.1.evil.example", "[::1]", "127.0.0.1 ", "017700000001", "10.0.0.1", "::ffff:10.0.0.1", "a..b"]


@pytest.mark.parametrize("host", EXPOSED)
def test_a_host_that_is_no_loopback_address_needs_expose_and_a_key(make_plan, tmp_path, monkeypatch, host):
    planned = make_plan(host=host)
    monkeypatch.setenv("VLLM_API_KEY", "secret-key")
    assert "address" in kinds(preflight.problems(planned, tmp_path))
    for key in ("", " \t"):
        monkeypatch.setenv("VLLM_API_KEY", key)
        (problem,) = preflight.problems(planned, tmp_path, expose=True)
        assert problem.kind == "address" and ("VLLM_API_KEY" in problem.remedy or not host.strip())


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_an_invalid_port(make_plan, tmp_path, port):
    assert kinds(preflight.problems(make_plan(port=port), tmp_path)) == ["address"]


@pytest.mark.parametrize("space", ["", "lots", "nan", "inf", "-1", "0", "1.5", "1e400"])
def test_an_invalid_kv_cache_space(make_plan, tmp_path, space):
    planned = make_plan()
    invalid = planned.model_copy(update={"environment": planned.environment | {"VLLM_CPU_KVCACHE_SPACE": space}})
    (problem,) = preflight.problems(invalid, tmp_path)
    assert problem.kind == "profile" and repr(space) in problem.message and "GiB" in problem.message


def test_without_a_kv_cache_space_vllm_takes_its_share(make_plan, tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    planned = make_plan(CPU.model_copy(update={"free_bytes": CPU.total_bytes // 2}), overrides=SHARE)
    auto = {name: value for name, value in planned.environment.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    assert preflight.problems(planned, tmp_path) == []
    (problem,) = preflight.problems(planned.model_copy(update={"environment": auto}), tmp_path)
    assert problem.kind == "memory" and "60%" in problem.message


SHARE = ["--gpu-memory-utilization", "0.6"]


@pytest.mark.parametrize("share", ["lots", "0", "-0.1", "1.01", "nan", "inf", ""])
@pytest.mark.parametrize(("machine", "build"), [(CPU, ("cpu", "0.32.0")), (H200, ("gpu", "0.26.0"))])
def test_an_invalid_share_of_memory(make_plan, tmp_path, machine, build, share):
    (problem,) = preflight.problems(
        make_plan(machine, build, overrides=[f"--gpu-memory-utilization={share}"]), tmp_path
    )
    assert problem.kind == "profile" and repr(share) in problem.message


@pytest.mark.parametrize("dtype", ["off", "on", "no", "8", "[fp8]", "{a: fp8}"])
def test_an_invalid_kv_cache_dtype(make_plan, tmp_path, dtype):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: baseline\nvllm: {{kv-cache-dtype: {dtype}}}\n")
    with pytest.raises(Problem, match="kv-cache-dtype is") as caught:
        make_plan(name=str(path))
    assert caught.value.kind == "profile"


def test_an_unsupported_python_and_a_missing_library(make_plan, tmp_path, monkeypatch):
    planned = make_plan()
    monkeypatch.setattr(software, "check_libraries", CHECK_LIBRARIES)
    monkeypatch.setattr(software, "CPU_LIBRARIES", {"libc.so.6": "libc6", "libnowhere.so.1": "libnowhere1"})
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "software" and "libnowhere.so.1" in problem.message and "libc.so.6" not in problem.message
    assert "libnowhere1" in problem.remedy
    software.check_libraries("gpu")
    monkeypatch.setattr(software, "CPU_LIBRARIES", {})
    monkeypatch.setattr(software, "PYTHONS", ((3, 7), (3, 8)))
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "software" and "3.7 to 3.8" in problem.message


def test_a_package_that_only_this_process_can_import(make_plan, tmp_path, monkeypatch):
    """From a relative PYTHONPATH, or a working directory with `python -m`: the server's processes would not find it."""
    planned = make_plan()
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", ".")
    monkeypatch.chdir(REPO)
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "software" and "vllm_launch" in problem.message and "pip install" in problem.remedy


def test_too_little_memory_on_a_cpu(make_plan, tmp_path):
    full = CPU.model_copy(update={"free_bytes": GIB})
    (problem,) = preflight.problems(make_plan(full), tmp_path)
    assert problem.kind == "memory" and "1.0 GiB free" in problem.message


def test_too_little_memory_on_a_gpu_names_its_users(make_plan, tmp_path):
    busy = H200.model_copy(update={"free_bytes": 20 * GIB})
    planned = make_plan(busy, ("gpu", "0.26.0"), overrides=["--gpu-memory-utilization", "0.7"])
    (problem,) = preflight.problems(planned, tmp_path)
    assert problem.kind == "memory"
    assert f"pid {os.getpid()}, 60.0 GiB" in problem.message


def test_weights_that_do_not_fit_a_gpu(make_plan, tmp_path):
    planned = make_plan(H200, ("gpu", "0.26.0"), overrides=["--gpu-memory-utilization", "0.3"])
    heavy = planned.model_copy(update={"model": planned.model.model_copy(update={"weight_bytes": 60 * GIB})})
    (problem,) = preflight.problems(heavy, tmp_path)
    assert problem.kind == "memory" and "gpt-oss-20b" in problem.remedy


def test_preflight_leaves_nothing_behind(make_plan, tmp_path):
    planned, before = make_plan(), sorted(tmp_path.rglob("*"))
    assert preflight.problems(planned, tmp_path / "runs" / "serve-1") == []
    assert sorted(tmp_path.rglob("*")) == before


def test_too_little_disk(make_plan, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    assert kinds(preflight.problems(make_plan(), tmp_path)) == ["disk", "disk"]


def test_a_folder_that_cannot_be_written(make_plan):
    (problem,) = preflight.problems(make_plan(), Path("/proc/nowhere"))
    assert problem.kind == "disk" and "/proc/nowhere" in problem.message


def test_families_and_a_family_without_a_backend(make_plan):
    assert [family_of(9, 0), family_of(10, 3), family_of(12, 1), family_of(8, 9)] == ["sm90", "sm100", "sm12x", "sm89"]
    with pytest.raises(Problem, match="sm89"):
        make_plan(H200.model_copy(update={"family": "sm89"}), ("gpu", "0.26.0"))


def test_the_default_model_on_a_gpu(make_plan, monkeypatch):
    monkeypatch.setattr(plan, "detect", lambda device: H200)
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("gpu", "0.26.0"))
    with pytest.raises(Problem) as caught:
        plan.make(profile.load("fp8"), port=0, cache_root=Path("cache"))
    assert "openai/gpt-oss-120b" in caught.value.message and "--model" in caught.value.remedy


def test_another_server_on_the_port(make_plan):
    class Foreign(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "their-model"}]}')

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        planned = make_plan(port=foreign.server_port)
        with server.requests.Session() as session, pytest.raises(Problem) as caught:
            server._answers(planned, session)
        foreign.shutdown()
    assert caught.value.kind == "address" and "their-model" in caught.value.message


def test_no_vllm_and_both_vllms(monkeypatch):
    for installed in ({}, {"vllm": "0.26.0", "vllm-cpu": "0.32.0"}, {"vllm": "0.19.0"}):
        monkeypatch.setattr(software, "version", installed.get)
        with pytest.raises(Problem) as caught:
            software.vllm_build()
        assert caught.value.kind == "software" and "make setup" in caught.value.remedy
