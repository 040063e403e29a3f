"""Fixtures and markers shared by all rooms."""

import json
import os
import signal
import struct
import threading
from pathlib import Path

import pytest

from flashinfer_patches.errors import Problem
from vllm_launch import machine, software

NEEDS_GPU = "needs an NVIDIA GPU"
SERVED = ("FP8_SINKS_", "HF_", "VLLM_")  # variables that servers of the tests inherit
ENVIRONMENT = dict(os.environ)


def detect(device: str) -> machine.Machine | None:
    """The machine as `device` ("cpu" or "gpu") sees it; None without that device."""
    try:
        return machine.detect(device)
    except LookupError:
        return None


def vllm_machine() -> machine.Machine | None:
    """The machine that the installed vLLM serves on; None if it cannot run here."""
    try:
        detected = detect(software.vllm_build()[0])
    except Problem:  # no vLLM
        return None
    return detected if detected and detected.avx2 else None


def pytest_configure():
    """End a test run on TERM, which `timeout` sends, as on Ctrl-C: with all fixtures torn down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Skip tests by marker where the machine lacks something; start the long server files first.

    Raises RuntimeError where a test module has changed what servers inherit when it was imported.
    """
    changed = [name for name in {**ENVIRONMENT, **os.environ} if ENVIRONMENT.get(name) != os.environ.get(name)]
    if set_by_import := [name for name in changed if name.startswith(SERVED)]:
        raise RuntimeError(f"a test module sets {', '.join(set_by_import)} when it is imported")
    server_machine = vllm_machine()
    missing = {} if detect("gpu") else {"gpu": NEEDS_GPU}
    if not server_machine:
        missing["fp8_cache"] = "needs a vLLM that runs on this machine"
    if not (server_machine and server_machine.fp8_kernels):
        missing["native_fp8"] = "needs vLLM's own FP8 kernels: on a CPU, AVX-512 or AMX"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: item.get_closest_marker("server") is None)  # stable


def pytest_report_teststatus(report):
    """Count GPU tests that are skipped as "need a GPU" in the last line, instead of listing their reasons."""
    if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[-1] == f"Skipped: {NEEDS_GPU}":
        return "need a GPU", "g", "NEEDS GPU"
    return None


@pytest.fixture(scope="session")
def fp8_cache() -> bool:
    """Whether a server with an FP8 KV cache runs here."""
    return vllm_machine() is not None


@pytest.fixture
def model_folder(tmp_path):
    """Return a function that writes a model folder: a config and a safetensors header with the given tensor names."""

    def write(names=("model.layers.0.self_attn.sinks",), name="some-model", **config) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        content = {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "num_hidden_layers": 1,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "hidden_size": 256,
            "sliding_window": 128,
            "max_position_embeddings": 4096,
        }
        (folder / "config.json").write_text(json.dumps(content | config))
        header = json.dumps({n: {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]} for n in names}).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        return folder

    return write
