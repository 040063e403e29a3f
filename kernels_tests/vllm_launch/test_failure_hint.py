"""Remedies from the log of a dead server."""

import sys
from pathlib import Path

import pytest

from flashinfer_patches.errors import Problem
from vllm_launch import server
from vllm_launch.failure_hint import failure_hint
from vllm_launch.resolved import read

LOGS = Path(__file__).parent / "logs"


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_hints_only_for_servers_that_died(path):
    hint = failure_hint(path.read_text(encoding="utf-8"))
    assert (hint is not None) == ("failed" in path.stem)


def test_the_hint_of_a_complete_log_is_the_root_cause():
    hint = failure_hint(log("cpu-0.32.0-failed-kv")) or ""
    assert hint.startswith("lower --max-model-len (in the log: To serve at least one request")
    assert "\n" not in hint
    with pytest.raises(ValueError, match="KV cache capacity"):
        read(log("cpu-0.32.0-failed-kv"), "0.32.0")


@pytest.mark.parametrize(("code", "lines"), [("raise SystemExit(3)", 1), ("print('cause'); raise SystemExit(3)", 2)])
def test_a_server_that_dies_shows_its_log_or_that_it_wrote_none(plan_with, tmp_path, code, lines):
    plan = plan_with("baseline").model_copy(update={"command": [sys.executable, "-c", code]})
    with pytest.raises(Problem) as caught, server.running(plan, tmp_path, lambda _status: None):
        pass
    message = caught.value.message.splitlines()
    assert caught.value.kind == "server" and "exit code 3" in message[0] and len(message) == lines
    assert ("no log" in message[0]) == (lines == 1) and ("cause" in message[-1]) == (lines == 2)


# (log line, words of the remedy). Recorded from 0.32.0 on a CPU, and shortened:
RECORDED = [
    ("Model architectures ['TinyGptOssForCausalLM'] are not supported for now. Supported", "our plugin"),
    ("Model architectures ['X'] are not supported for now. Supported: ['TinyGptOssForCausalLM']", "knows"),
    ("ValueError: Unknown attention backend: 'NOSUCH'. Valid options are: FLASH_ATTN", "names listed"),
    ("(1.0/2.0 GiB) on kv cache allocation is less than requested memory for kv (5.0 GiB).", "KVCACHE_SPACE"),
    ("User-specified max_model_len (999999) is greater than the derived max_model_len", "--max-model-len"),
    ("ModuleNotFoundError: No module named 'fastsafetensors'", "--load-format"),
    ("HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': 'x'", "--model"),
    ("LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the", "download"),
    ("OSError: [Errno 98] Address already in use", "port"),
    ("api_server.py: error: unrecognized arguments: --no-such-flag", "no such argument"),
    ("api_server.py: error: argument --kv-cache-dtype: invalid choice: 'nosuch' (choose from", "that value"),
    ("RuntimeError: Engine core initialization failed. See root cause above. Failed core", "first ERROR"),
]
# Composed from the sources: platforms/cuda.py, v1/worker/utils.py, v1/worker/gpu_worker.py,
# v1/worker/gpu_model_runner.py, v1/core/kv_cache_utils.py, and platforms/cpu.py of 0.33.0
COMPOSED = [
    ("Selected backend AttentionBackendEnum.CUSTOM is not valid for this configuration.", "decoder: stock"),
    ("ValueError: Backend CUSTOM must be registered before use. Use register_backend(", "our plugin failed"),
    (
        "Selected backend AttentionBackendEnum.FLASHINFER is not valid for this configuration.",
        "--attention-b",
    ),
    ("No valid attention backend found for cuda with AttentionSelectorConfig(", "--kv-cache-dtype"),
    ("Free memory on device cuda:0 (3.1/139.8 GiB) on startup is less than desired GPU memory", "free GPU"),
    ("Error in memory profiling. Initial free memory 3.0 GiB, current free memory 9.0 GiB.", "start again"),
    ("Failed to load model - not enough GPU memory. (original error: CUDA out of memory.)", "do not fit"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "--max-num-batched-tokens"),
    ("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "room is left"),
    ("--kv-cache-dtype int8 is not supported by the CPU attention backend on this host.", "fp8_e4m3"),
]


@pytest.mark.parametrize(("line", "remedy"), RECORDED + COMPOSED)
def test_known_failures(line, remedy):
    hint = failure_hint(f"(EngineCore pid=102) ERROR 11-21 12:31:18 [core.py:1510] {line}\nmore\n")
    assert remedy in hint.split(" (in the log: ")[0]


def test_no_hint_for_an_unknown_failure():
    assert failure_hint("RuntimeError: something new") is None
