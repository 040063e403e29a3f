"""`fp8-sinks serve` with the real vLLM and the embedded model: it answers, and leaves no process however it ends."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from itertools import combinations

import psutil
import pynvml
import pytest
import requests

from bench.engine.environment import OF_RANKS
from flashinfer_patches.errors import EXIT_CODES
from kernels_tests.processes import free_port, listens, scaled, spawn, wait_for, watched
from vllm_launch import software
from vllm_launch.model import EMBEDDED

pytestmark = pytest.mark.server
START_S = 240
END_S = 60
RANK_BYTES = 1 << 30  # of a GPU: a rank takes more, a driver that is idle less
KILLED = ("launcher", "supervisor", "API server", "EngineCore", "Worker")


@contextmanager
def serve(tmp_path, profile_name, *options, variables=None):
    """Run `fp8-sinks serve` as a user does; yields (process, port, a function that lists its live processes)."""
    port = free_port()
    command = [sys.executable, "-m", "fp8_sinks", "serve", profile_name, "--port", str(port), "--json"]
    with watched() as live, (tmp_path / "stderr").open("w") as stderr:
        process = spawn(
            [*command, "--run-dir", str(tmp_path / "run"), *options],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # A key that must not show, and a level that would drop the lines which are read back from the log.
            env=os.environ
            | {"VLLM_API_KEY": "a-key-that-must-not-show", "VLLM_LOGGING_LEVEL": "WARNING"}
            | (variables or {}),
            start_new_session=True,
        )
        yield process, port, live


def ready(process):
    """Return the JSON that `serve` prints once the server is ready."""
    line = process.stdout.readline()
    assert line, "serve ended before the server was ready"
    return json.loads(line)


def by_role(process, supervisor_pid, live, workers=1):
    """Return the processes of a ready server by role, both supervisors as one; all are alive."""
    outer = psutil.Process(supervisor_pid)
    (inner,) = outer.children()
    (api_server,) = inner.children()
    roles = {"launcher": [psutil.Process(process.pid)], "supervisor": [outer, inner], "API server": [api_server]}
    for role in ("EngineCore", "Worker"):
        roles[role] = [p for p in live() if " ".join(p.cmdline()).startswith(f"VLLM::{role}")]
        expected = workers if role == "Worker" else 1
        assert len(roles[role]) == expected, [p.cmdline() for p in live()]
    assert {p for processes in roles.values() for p in processes} <= set(live())
    return roles


@pytest.mark.parametrize(
    ("name", "kv_cache_dtype", "kv_format"),
    [
        pytest.param("baseline", "auto", None, marks=pytest.mark.long),
        pytest.param("fp8", "fp8", "e4m3", marks=pytest.mark.fp8_cache),
        pytest.param("int8", "int8_per_token_head", "int8", marks=[pytest.mark.long, pytest.mark.fp8_cache]),
    ],
)
def test_serve_answers_and_a_killed_launcher_leaves_nothing(tmp_path, name, kv_cache_dtype, kv_format):
    with serve(tmp_path, name) as (process, port, live):
        resolved = ready(process)["resolved"]
        assert resolved["attention_backends"] == ["CPU_ATTN"]
        assert resolved["kv_cache_dtype"] == kv_cache_dtype
        assert resolved["cpu_cache_writer"] is (name != "baseline") and resolved["kv_format"] == kv_format
        base = f"http://127.0.0.1:{port}/v1"
        chat = {
            "model": "tiny_gpt_oss",
            "messages": [{"role": "user", "content": "What is the capital of France? Please reply with one word only"}],
            "temperature": 0,
        }
        answer = requests.post(f"{base}/chat/completions", json=chat, timeout=scaled(60))
        assert answer.status_code == 200 and "Paris" in answer.json()["choices"][0]["message"]["content"]

        # Only loopback listens, and the key is in no command line and in no log.
        listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
        assert listening == ["127.0.0.1"]
        assert not any("a-key-that" in word for p in live() for word in p.cmdline())
        assert "a-key-that" not in (tmp_path / "run" / f"{name}.log").read_text() + (tmp_path / "stderr").read_text()

        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not live() and not listens(port), END_S)


@pytest.mark.long
def test_a_killed_server_ends_the_command_with_its_code(tmp_path):
    with serve(tmp_path, "baseline") as (process, port, live):
        roles = by_role(process, ready(process)["supervisor_pid"], live)
        roles["API server"][0].kill()
        assert process.wait(timeout=scaled(END_S)) == EXIT_CODES["server"]
        wait_for(lambda: not live() and not listens(port), END_S)
    stderr = (tmp_path / "stderr").read_text()
    assert "exit code 137" in stderr and "remedy:" in stderr


@pytest.mark.long
@pytest.mark.parametrize("pair", list(combinations(KILLED, 2)), ids=" and ".join)
def test_any_two_killed_at_once_leave_nothing(tmp_path, pair):
    with serve(tmp_path, "baseline") as (process, port, live):
        roles = by_role(process, ready(process)["supervisor_pid"], live)
        for role in pair:
            for victim in roles[role]:
                victim.kill()
        wait_for(lambda: not live() and not listens(port), END_S)


def gpu_bytes():
    """Bytes in use on each GPU; empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles]
    finally:
        pynvml.nvmlShutdown()


@pytest.mark.long
@pytest.mark.parametrize("role", ["launcher", "Worker"])
def test_two_ranks_leave_no_process_and_no_gpu_memory(tmp_path, role):
    """On a CPU, and on two GPUs of one host; one of the workers is killed, the second."""
    device, before = software.vllm_build()[0], gpu_bytes()
    if device == "gpu" and len(before) < 2:
        pytest.skip("needs two GPUs")
    options = ["--model", str(EMBEDDED), "--", "--tensor-parallel-size", "2", "--enforce-eager"]
    with serve(tmp_path, "baseline", *options, variables=OF_RANKS[device]) as (process, port, live):
        roles = by_role(process, ready(process)["supervisor_pid"], live, workers=2)
        if device == "gpu":
            assert all(used > idle + RANK_BYTES for used, idle in zip(gpu_bytes()[:2], before, strict=False))
        roles[role][-1].kill()
        process.wait(timeout=scaled(END_S))
        wait_for(lambda: not live() and not listens(port), END_S)
        wait_for(lambda: all(used < idle + RANK_BYTES for used, idle in zip(gpu_bytes(), before, strict=True)), END_S)
    assert process.returncode == (EXIT_CODES["server"] if role == "Worker" else -signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_loading_leaves_nothing(tmp_path, number):
    with serve(tmp_path, "baseline") as (process, port, live):
        wait_for(lambda: len(live()) >= 5, START_S)  # launcher, supervisors, API server, engine
        process.send_signal(number)
        assert process.wait(timeout=scaled(END_S)) == 128 + number
        wait_for(lambda: not live() and not listens(port), END_S)


@pytest.mark.long
def test_a_server_that_cannot_start_shows_its_log_and_a_remedy(tmp_path):
    with serve(tmp_path, "baseline", "--", "--max-model-len", "999999999") as (process, _, live):
        assert process.wait(timeout=scaled(START_S)) == EXIT_CODES["server"]
        assert not live()
    stderr = (tmp_path / "stderr").read_text()
    assert "  | " in stderr and "remedy: lower --max-model-len" in stderr
