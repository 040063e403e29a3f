"""The real vLLM server with the embedded model: it serves, and however it ends, nothing is left."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest
import requests

from kernels_tests.processes import MARK, free_port, listens, marked, wait_for

pytestmark = pytest.mark.server
START_S = 240
END_S = 60


@contextmanager
def serve(tmp_path, profile_name, *options):
    """`fp8-sinks serve` as a user runs it; yields (process, port, mark). Whatever is left at the end is killed."""
    port, mark = free_port(), tmp_path.name + str(os.getpid())
    command = [sys.executable, "-m", "fp8_sinks", "serve", profile_name, "--port", str(port), "--json"]
    environment = os.environ | {MARK: mark, "VLLM_API_KEY": "a-key-that-must-not-show"}
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run"), *options],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process, port, mark
    finally:
        for left in marked(mark):
            left.kill()
        process.wait()


@pytest.mark.parametrize(
    ("name", "kv_cache_dtype"), [("baseline", "auto"), pytest.param("fp8", "fp8", marks=pytest.mark.fp8_cache)]
)
def test_serve_answers_and_a_killed_launcher_leaves_nothing(tmp_path, name, kv_cache_dtype):
    with serve(tmp_path, name) as (process, port, mark):
        ready = json.loads(process.stdout.readline())
        assert ready["resolved"]["attention_backends"] == ["CPU_ATTN"]
        assert ready["resolved"]["kv_cache_dtype"] == kv_cache_dtype
        assert ready["resolved"]["cpu_cache_writer"] is (name == "fp8")
        base = f"http://127.0.0.1:{port}/v1"
        chat = {
            "model": "tiny_gpt_oss",
            "messages": [{"role": "user", "content": "What is the capital of France? Please reply with one word only"}],
            "temperature": 0,
        }
        answer = requests.post(f"{base}/chat/completions", json=chat, timeout=60)
        assert answer.status_code == 200 and "Paris" in answer.json()["choices"][0]["message"]["content"]

        # Only loopback listens, and the key is in no command line and in no log.
        listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
        assert listening == ["127.0.0.1"]
        assert not any("a-key-that" in word for p in marked(mark) for word in p.cmdline())
        assert "a-key-that" not in (tmp_path / "run" / f"{name}.log").read_text() + (tmp_path / "stderr").read_text()

        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not marked(mark) and not listens(port), END_S)


def test_a_killed_server_ends_the_command_with_its_code(tmp_path):
    with serve(tmp_path, "baseline") as (process, port, mark):
        ready = json.loads(process.stdout.readline())
        (api_server,) = psutil.Process(ready["supervisor_pid"]).children()
        api_server.kill()
        assert process.wait(timeout=END_S) == 20
        wait_for(lambda: not marked(mark) and not listens(port), END_S)
    said = (tmp_path / "stderr").read_text()
    assert "exit code 137" in said and "remedy:" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_loading_leaves_nothing(tmp_path, number):
    with serve(tmp_path, "baseline") as (process, port, mark):
        wait_for(lambda: len(marked(mark)) >= 4, START_S)  # launcher, supervisor, API server, engine
        process.send_signal(number)
        assert process.wait(timeout=END_S) == 128 + number
        wait_for(lambda: not marked(mark) and not listens(port), END_S)


def test_a_server_that_cannot_start_shows_its_log_and_a_remedy(tmp_path):
    with serve(tmp_path, "baseline", "--", "--max-model-len", "999999999") as (process, _, mark):
        assert process.wait(timeout=START_S) == 20
        assert not marked(mark)
    said = (tmp_path / "stderr").read_text()
    assert "  | " in said and "remedy: lower --max-model-len" in said
