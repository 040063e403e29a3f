"""Fixtures shared by all rooms."""

import json
import signal
import struct
import threading
from pathlib import Path

import pytest

from flashinfer_patches.errors import Problem
from vllm_launch import machine, software


def device() -> machine.Machine | None:
    """What the vLLM that is installed serves on here; None without one that runs here."""
    try:
        found = machine.detect(software.vllm_build()[0])
    except (Problem, LookupError):  # no vLLM, or not the one for what is here
        return None
    return found if found.avx2 else None


def pytest_configure():
    """A TERM, as `timeout` sends it, ends a test run like Ctrl-C does: through every fixture's end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    lacks = {} if machine.has_gpu() else {"gpu": "needs an NVIDIA GPU; none here"}
    if not device():
        lacks["fp8_cache"] = "needs a vLLM that runs on what is here"
    if not (device() and device().fp8_kernels):
        lacks["native_fp8"] = "needs vLLM's own FP8 kernels: on a CPU, AVX-512 or AMX; not here"
    for item in items:
        for marker, reason in lacks.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def fp8_cache() -> bool:
    return device() is not None


@pytest.fixture
def model_folder(tmp_path):
    """A function that writes a model folder with a config and a safetensors header of the given tensor names."""

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
