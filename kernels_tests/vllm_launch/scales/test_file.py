"""Scale files: a round trip, every file that is refused, and what is never overwritten."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashinfer_patches.errors import Problem
from kernels_tests.vllm_launch import scale_files
from vllm_launch.scales import file

LAYERS, KV_HEADS = 3, 4
ORIGIN = scale_files.origin(b"{}")
METADATA = {key: str(value) for key, value in ORIGIN.model_dump().items()}
NAME = file.tensor_name(1, "v")


def scales_of(heads: int = KV_HEADS) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """K and V of each layer, all different."""
    numbers = torch.arange(1, 2 * LAYERS * heads + 1, dtype=torch.float32).view(2, LAYERS, heads) / 100
    return list(numbers[0]), list(numbers[1])


def tensors_of(heads: int = KV_HEADS) -> dict[str, torch.Tensor]:
    return named(*scales_of(heads))


def named(k, v) -> dict[str, torch.Tensor]:
    tensors = {file.tensor_name(layer, "k"): scale for layer, scale in enumerate(k)}
    return tensors | {file.tensor_name(layer, "v"): scale for layer, scale in enumerate(v)}


@pytest.fixture
def path(tmp_path):
    """A correct scale file."""
    target = tmp_path / "scales.safetensors"
    file.write(target, *scales_of(), ORIGIN, KV_HEADS)
    return target


def message_of(path, layers=LAYERS, kv_heads=KV_HEADS) -> str:
    """The message of the refusal of a file."""
    with pytest.raises(Problem) as refusal:
        file.load(path, layers, kv_heads)
    assert refusal.value.kind == "scales" and refusal.value.exit_code == 2
    assert "\n" not in refusal.value.message and "calibrate" in refusal.value.remedy
    assert str(path) in refusal.value.message
    return refusal.value.message


def test_a_round_trip(path):
    scales, (k, v) = file.load(path, LAYERS, KV_HEADS), scales_of()
    assert all(map(torch.equal, scales.k, k)) and all(map(torch.equal, scales.v, v))
    assert [len(scales.k), len(scales.v)] == [LAYERS, LAYERS]
    assert scales.origin == ORIGIN and scales.kv_format == "e4m3" and len(scales.sha256) == 64
    assert list(path.parent.iterdir()) == [path]


def test_other_tools_can_read_it(path):
    tensors = load_file(path)
    assert set(tensors) == {
        f"model.layers.{layer}.self_attn.{kind}_scale" for layer in range(LAYERS) for kind in ("k", "v")
    }
    assert all(tensor.dtype == torch.float32 and tensor.shape == (KV_HEADS,) for tensor in tensors.values())


def test_a_scale_for_the_tensor_expands_to_all_heads(tmp_path):
    path = tmp_path / "tensor.safetensors"
    file.write(path, *scales_of(heads=1), ORIGIN, KV_HEADS)
    scales = file.load(path, LAYERS, KV_HEADS)
    assert [scale.tolist() for scale in scales.k] == [[pytest.approx(number / 100)] * KV_HEADS for number in (1, 2, 3)]


def test_a_file_without_the_key_kv_format_is_e4m3(tmp_path):
    path = tmp_path / "scales.safetensors"
    save_file(tensors_of(), path, {key: value for key, value in METADATA.items() if key != "kv_format"})
    assert file.load(path, LAYERS, KV_HEADS).kv_format == "e4m3"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x80\x04\x95pickle", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"]
)
def test_a_file_that_is_no_safetensors(tmp_path, content):
    path = tmp_path / "scales.safetensors"
    path.write_bytes(content)
    assert "no safetensors" in message_of(path)


def test_a_torch_pickle(tmp_path):
    path = tmp_path / "scales.safetensors"
    torch.save(tensors_of(), path)
    assert "no safetensors" in message_of(path)


def test_a_truncated_file(path):
    path.write_bytes(path.read_bytes()[:-4])
    assert "no safetensors" in message_of(path)


def test_a_missing_file_and_a_folder(tmp_path):
    message_of(tmp_path / "absent.safetensors")
    message_of(tmp_path)


def test_a_file_of_weights_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as weights:
        weights.truncate(file.LARGEST_BYTES + 1)
    assert "bytes" in message_of(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_file_of_another_tool(tmp_path, metadata):
    path = tmp_path / "scales.safetensors"
    save_file(tensors_of(), path, metadata)
    assert file.MARK in message_of(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"fp8_sinks_scales": "2"},
        {"kv_format": "e5m2"},
        {"granularity": "channel"},
        {"config_sha256": "short"},
        {"percentile": "0"},
        {"headroom": "nan"},
        {"tokens": "none"},
        {"foreign": "key"},
    ],
)
def test_metadata_that_is_not_as_written(tmp_path, changes):
    path = tmp_path / "scales.safetensors"
    save_file(tensors_of(), path, METADATA | changes)
    assert next(iter(changes)) in message_of(path)


@pytest.mark.parametrize("key", [key for key in METADATA if key not in ("kv_format", file.MARK)])
def test_metadata_that_lacks_a_key(tmp_path, key):
    path = tmp_path / "scales.safetensors"
    save_file(tensors_of(), path, {name: value for name, value in METADATA.items() if name != key})
    assert key in message_of(path)


def test_a_model_of_more_layers(path):
    assert file.tensor_name(LAYERS, "k") in message_of(path, layers=LAYERS + 1)


def test_a_model_of_fewer_layers(path):
    assert file.tensor_name(LAYERS - 1, "k") in message_of(path, layers=LAYERS - 1)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_a_model_of_other_heads(path, kv_heads):
    message = message_of(path, kv_heads=kv_heads)
    assert f"[{KV_HEADS}]" in message and f"[{kv_heads}]" in message


@pytest.mark.parametrize("name", sorted(tensors_of()))
def test_a_missing_tensor(tmp_path, name):
    path = tmp_path / "scales.safetensors"
    save_file({key: value for key, value in tensors_of().items() if key != name}, path, METADATA)
    assert name in message_of(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-40])
def test_a_scale_that_cannot_divide(tmp_path, value):
    path, tensors = tmp_path / "scales.safetensors", tensors_of()
    tensors[NAME][2] = value
    save_file(tensors, path, METADATA)
    assert NAME in message_of(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.float8_e4m3fn])
def test_another_dtype(tmp_path, dtype):
    path, tensors = tmp_path / "scales.safetensors", tensors_of()
    tensors[NAME] = tensors[NAME].to(dtype)
    save_file(tensors, path, METADATA)
    assert str(dtype) in message_of(path)


@pytest.mark.parametrize("shape", [(), (KV_HEADS, 1), (1, KV_HEADS), (0,)])
def test_another_shape(tmp_path, shape):
    path, tensors = tmp_path / "scales.safetensors", tensors_of()
    tensors[NAME] = torch.ones(shape)
    save_file(tensors, path, METADATA)
    assert NAME in message_of(path)


def test_scales_that_would_be_refused_are_not_written(tmp_path):
    k, v = scales_of()
    v[0] = v[0] * torch.nan
    with pytest.raises(Problem) as refusal:
        file.write(tmp_path / "scales.safetensors", k, v, ORIGIN, KV_HEADS)
    assert refusal.value.kind == "scales" and list(tmp_path.iterdir()) == []


def test_a_scale_file_is_replaced(path):
    before = file.load(path, LAYERS, KV_HEADS).sha256
    k, v = scales_of()
    file.check_target(path)
    written = file.write(path, v, k, ORIGIN, KV_HEADS)
    assert written.sha256 == file.load(path, LAYERS, KV_HEADS).sha256 != before


@pytest.mark.parametrize("kind", ["text", "empty", "weights", "folder", "link", "dangling link"])
def test_a_foreign_file_is_left(tmp_path, path, kind):
    target = tmp_path / "target.safetensors"
    match kind:
        case "text":
            target.write_text("notes")
        case "empty":
            target.touch()
        case "weights":
            save_file(tensors_of(), target, {"format": "pt"})
        case "folder":
            target.mkdir()
        case "link":
            target.symlink_to(path)
        case "dangling link":
            target.symlink_to(tmp_path / "absent")
    before = os.lstat(target)
    for action in (file.check_target, lambda target: file.write(target, *scales_of(), ORIGIN, KV_HEADS)):
        with pytest.raises(Problem) as refusal:
            action(target)
        assert refusal.value.kind == "file" and str(target) in refusal.value.message
    assert os.lstat(target) == before


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(Problem) as refusal:
        file.check_target(tmp_path / "absent" / "scales.safetensors")
    assert refusal.value.kind == "file"


def test_a_disk_that_refuses(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file.files, "replace", no_space)
    with pytest.raises(Problem) as refusal:
        file.write(tmp_path / "scales.safetensors", *scales_of(), ORIGIN, KV_HEADS)
    assert refusal.value.kind == "disk"
