"""Scale files of int8: K per channel and V per head, told from those of E4M3, and every file that is refused."""

import pytest
import torch
from safetensors.torch import save_file

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch import scale_files
from kernels_tests.vllm_launch.scales.test_file import (
    KV_HEADS,
    LAYERS,
    METADATA,
    message_of,
    named,
    scales_of,
    tensors_of,
)
from vllm_launch.scales import file

HEAD_DIM = 64
INT8_ORIGIN = scale_files.origin(b"{}", "int8")
INT8_METADATA = {key: str(value) for key, value in INT8_ORIGIN.model_dump().items()}


def int8_scales() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """K of each layer, head and channel, and V of each layer and head, all different."""
    numbers = torch.arange(1, LAYERS * KV_HEADS * HEAD_DIM + 1, dtype=torch.float32) / 100
    return list(numbers.view(LAYERS, KV_HEADS, HEAD_DIM)), scales_of()[1]


def test_a_round_trip_of_int8(tmp_path):
    path, (k, v) = tmp_path / "int8.safetensors", int8_scales()
    written = file.write(path, k, v, INT8_ORIGIN, KV_HEADS)
    scales = file.load(path, LAYERS, KV_HEADS)
    assert all(map(torch.equal, scales.k, k)) and all(map(torch.equal, scales.v, v))
    assert scales.kv_format == "int8" and scales.origin == INT8_ORIGIN and scales.sha256 == written.sha256


@pytest.mark.parametrize(("served", "of_file"), [("int8", "e4m3"), ("e4m3", "int8")])
def test_scales_for_another_format(tmp_path, served, of_file):
    path = tmp_path / "scales.safetensors"
    scales = scale_files.write(path, b"{}", *(int8_scales() if of_file == "int8" else scales_of()))
    file.check_format(scales, path, of_file)
    with pytest.raises(Problem) as refusal:
        file.check_format(scales, path, served)
    assert refusal.value.kind == "scales" and f"--kv-format {served}" in refusal.value.remedy
    assert all(word in refusal.value.message for word in (str(path), served, of_file))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("k", (KV_HEADS,)),  # as E4M3's
        ("k", (1,)),
        ("k", (1, HEAD_DIM)),
        ("k", (HEAD_DIM, KV_HEADS)),
        ("k", (KV_HEADS, HEAD_DIM // 2)),
        ("k", (2 * KV_HEADS, HEAD_DIM)),
        ("k", (1, KV_HEADS, HEAD_DIM)),
        ("v", (1,)),
        ("v", (HEAD_DIM,)),
        ("v", (KV_HEADS, HEAD_DIM)),
    ],
)
def test_another_shape_of_int8(tmp_path, kind, shape):
    path, tensors, name = tmp_path / "scales.safetensors", named(*int8_scales()), file.tensor_name(1, kind)
    save_file(tensors | {name: torch.ones(shape)}, path, INT8_METADATA)
    message = message_of(path)
    assert name in message and str(list(shape)) in message


def test_layers_of_different_channels(tmp_path):
    path, tensors = tmp_path / "scales.safetensors", named(*int8_scales())
    save_file(tensors | {file.tensor_name(1, "k"): torch.ones(KV_HEADS, 128)}, path, INT8_METADATA)
    message = message_of(path)
    assert f"[{KV_HEADS}, 64]" in message and f"[{KV_HEADS}, 128]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 1e-40])
def test_an_int8_scale_that_cannot_divide(tmp_path, value):
    path, tensors, name = tmp_path / "scales.safetensors", named(*int8_scales()), file.tensor_name(2, "k")
    tensors[name][3, 17] = value
    save_file(tensors, path, INT8_METADATA)
    assert name in message_of(path)


@pytest.mark.parametrize(("tensors", "metadata"), [(named(*int8_scales()), METADATA), (tensors_of(), INT8_METADATA)])
def test_tensors_of_another_format_than_the_metadata(tmp_path, tensors, metadata):
    path = tmp_path / "scales.safetensors"
    save_file(tensors, path, metadata)
    assert file.tensor_name(0, "k") in message_of(path)


@pytest.mark.parametrize("granularity", ["head", "tensor"])
def test_a_granularity_that_int8_has_not(tmp_path, granularity):
    path = tmp_path / "scales.safetensors"
    save_file(named(*int8_scales()), path, INT8_METADATA | {"granularity": granularity})
    assert "granularity" in message_of(path) and "channel" in message_of(path)
