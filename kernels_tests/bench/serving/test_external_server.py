"""`bench serving --url` on a real vLLM server that the test starts by hand, with a key; it is left as it was."""

import json
import os
import sys
import time
from contextlib import suppress

import psutil
import pytest
import requests

from bench import kinds
from bench.servers.external import KEY_VARIABLE
from kernels_tests.bench.serving import small
from kernels_tests.processes import free_port, spawn, wait_for, watched
from vllm_launch.model import EMBEDDED
from vllm_launch.software import vllm_build

pytestmark = pytest.mark.server
KEY = "key-of-the-server-by-hand"
SUITE = """
extends: tiny_gpt_oss
grid: {prompt: [64], output: [16], depth: [0], concurrency: [1, 2], runs: 2}
texts: {contexts: [{context: 128, texts: 16, tokens: 64}]}
"""
CPU_OVERRIDES = {"model_type": "tiny_gpt_oss", "architectures": ["TinyGptOssForCausalLM"]}  # of models/tiny_gpt_oss
CPU_ENVIRONMENT = {"FP8_SINKS_PLUGIN": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}


def serve_by_hand(folder, port):
    """Start vLLM as a user does, without our launcher; `vllm serve` does not start with the distribution vllm-cpu."""
    on_cpu = vllm_build()[0] == "cpu"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(EMBEDDED)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2560", "--enforce-eager"]
    command += ["--hf-overrides", json.dumps(CPU_OVERRIDES)] if on_cpu else []
    environment = os.environ | {KEY_VARIABLE: KEY, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= CPU_ENVIRONMENT if on_cpu else {}
    with (folder / "server.log").open("w") as log:
        return spawn(command, stdout=log, stderr=log, cwd=folder, env=environment)


def is_healthy(url):
    with suppress(requests.RequestException):
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    return False


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The run folder, and what was seen of the server and of llama-benchy's arguments."""
    folder, port = tmp_path_factory.mktemp("url"), free_port()
    (folder / "small.yaml").write_text(SUITE)
    url, run, words = f"http://127.0.0.1:{port}", folder / "run", []
    with watched():
        server = spawn_and_wait(folder, port, url)
        before = [process.pid for process in psutil.Process(server.pid).children(recursive=True)]
        command = [*small.BENCH, "--url", url, "--suite", str(folder / "small.yaml"), "--run-dir", str(run)]
        bench = spawn(command, env=os.environ | {KEY_VARIABLE: KEY}, stderr=(folder / "bench.log").open("w"))
        while bench.poll() is None:
            for process in psutil.Process(bench.pid).children(recursive=True):
                with suppress(psutil.Error):
                    words.extend(process.cmdline())
            time.sleep(0.2)
        after = [process.pid for process in psutil.Process(server.pid).children(recursive=True)]
        seen = {"healthy": is_healthy(url), "before": before, "after": after, "words": words, "port": port}
        server.terminate()
        server.wait()
    assert bench.returncode == 0, (folder / "bench.log").read_text()
    return run, seen


def spawn_and_wait(folder, port, url):
    server = serve_by_hand(folder, port)
    wait_for(lambda: is_healthy(url) or server.poll() is not None, 120)
    assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
    return server


def test_the_server_is_left_as_it_was(measured):
    _, seen = measured
    assert seen["healthy"] and seen["before"] == seen["after"] != []


def test_its_rates_and_answers_are_measured(measured):
    run, _ = measured
    (row,) = kinds.read(run).rows
    assert [(rate.concurrency, len(rate.decode_tok_s)) for rate in row.rates] == [(1, 2), (2, 2)]
    assert [(match.reference, match.passed) for match in row.greedy] == [("server", True)] * 3
    assert row.accuracy.prefill.tokens == 16 * 64 and row.accuracy.decode is None
    assert row.accuracy.sinks.mean_abs_delta["true"] < 0.2 < row.accuracy.sinks.mean_abs_delta["zeroed"]
    (reason,) = row.unavailable
    assert reason.startswith("decode log-probabilities") and row.failures == []


def test_its_settings_are_not_known(measured):
    run, _ = measured
    (row,) = kinds.read(run).rows
    assert (row.requested, row.resolved, row.wiped, row.starts) == (None, None, None, [])
    assert "not known" in (run / "report.md").read_text().lower()


def test_settings_that_it_states_are_in_the_digest(measured):
    run, _ = measured
    digest = json.loads((run / "server" / "digest.json").read_text())
    assert digest["server's version"] and digest["server's KV cache cache_dtype"] in ("auto", "bfloat16")
    assert "server's KV cache num_gpu_blocks" not in digest


def test_neither_key_nor_host_is_in_files_or_arguments(measured):
    run, seen = measured
    assert any("llama_benchy" in word for word in seen["words"]) and KEY not in " ".join(seen["words"])
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)
    assert str(seen["port"]) not in (run / "result.json").read_text()
