"""Checkpoints of another shape, dtype or kind are refused."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from world.checkpoint import LARGEST_BYTES, load_checkpoint, save_checkpoint
from world.config import Config
from world.model import WorldModel


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(model, path)
    return path


def rewrite(path, change, metadata=None):
    """Save a file's tensors again, after `change` of their dict."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() if metadata is None else metadata
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def test_a_checkpoint_restores_the_model(model, saved):
    loaded = load_checkpoint(saved)
    assert loaded.config == model.config
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in model.state_dict().items())
    assert not list(saved.parent.glob("*.part"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x.update({"final_proj.bias": x["final_proj.bias"][1:].clone()}),
            "1 tensors differ from the model; final_proj.bias is torch.bfloat16 (47,); expected torch.bfloat16 (48,)",
        ),
        (lambda x: x.pop("embed.position"), "embed.position is missing; expected torch.bfloat16 (16, 64)"),
        (lambda x: x.update(extra=torch.ones(1)), "extra is torch.float32 (1,); expected missing"),
        (
            lambda x: x.update({"embed.position": x["embed.position"].float()}),
            "embed.position is torch.float32 (16, 64); expected torch.bfloat16 (16, 64)",
        ),
    ],
)
def test_other_tensors_are_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(saved)


def test_other_files_are_refused(saved, tmp_path):
    rewrite(saved, lambda x: None, {"config": '{"depth": 3}'})
    with pytest.raises(ValueError, match="has no metadata `config` of a world model"):
        load_checkpoint(saved)
    saved.write_bytes(b"no tensors")
    for path in (saved, tmp_path / "absent.safetensors"):
        with pytest.raises(ValueError, match="is missing or not a safetensors file"):
            load_checkpoint(path)


def test_only_a_checkpoint_of_limited_size_is_written(tmp_path):
    sizes = {dim: sum(2 * x.numel() for x in WorldModel(Config(dim=dim)).state_dict().values()) for dim in (96, 192)}
    assert sizes[96] <= LARGEST_BYTES < sizes[192]
    with pytest.raises(ValueError, match="expected at most 3500000"):
        save_checkpoint(WorldModel(Config(dim=192)), tmp_path / "large.safetensors")
    assert not list(tmp_path.iterdir())
