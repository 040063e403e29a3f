"""Fixtures shared by all rooms."""

import json
import struct
from pathlib import Path

import pytest

from vllm_launch import machine


def pytest_collection_modifyitems(items):
    if machine.has_gpu():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; none here")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


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
