"""Scale files: safetensors with the fp32 scales of an E4M3 or int8 KV cache, and how they were made."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from flashinfer_patches import files
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count, Strict
from vllm_launch.decoder.contract import HEAD_DIMS

MARK = "fp8_sinks_scales"  # the key of the metadata that makes a file ours
LARGEST_BYTES = 16 << 20  # a longer file is no scale file; 128 layers of 128 heads and 128 channels have 8 MiB
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a GPU may take a smaller number for 0
REMEDY = "make the file for this model: fp8-sinks scales calibrate MODEL --text FILE --out FILE.safetensors"
GRANULARITIES = {"e4m3": ("head", "tensor"), "int8": ("channel",)}  # of each format

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Saturated = Annotated[int, Field(ge=0)]


class Origin(Strict):
    """How a scale file was made: its metadata, where each value is a string.

    granularity: channel is a scale of K for each channel of a KV head, and one of V for each KV head. tokens: of the
    text that went through the model. percentile: of the magnitudes that share a scale; 100 is the largest. A scale is
    that magnitude x headroom / the format's largest value. values: keys and values counted, and how many of them are
    out of range with scale 1.0 and with the scales. commit: of the code.
    """

    fp8_sinks_scales: Literal["1"] = "1"
    kv_format: Literal["e4m3", "int8"] = "e4m3"
    granularity: Literal["head", "tensor", "channel"]
    model: str
    config_sha256: Sha256
    text_sha256: Sha256
    tokens: Count
    percentile: Annotated[float, Field(gt=0, le=100)]
    headroom: Annotated[float, Field(ge=1)]
    values: Count
    saturated_unscaled: Saturated
    saturated_scaled: Saturated
    commit: str

    @field_validator("granularity")
    @classmethod
    def _of_format(cls, granularity: str, info: ValidationInfo) -> str:
        allowed = GRANULARITIES[info.data.get("kv_format", "e4m3")]
        if granularity not in allowed:
            raise ValueError(f"{info.data.get('kv_format')} takes {' or '.join(allowed)}")
        return granularity


@dataclass(frozen=True)
class Scales:
    """The scales of a model's KV cache: x is stored as round(x / scale).

    k, v: for each layer fp32 [kv_heads], on the CPU; k of int8 [kv_heads, head_dim]. sha256: of the file.
    """

    k: list[torch.Tensor]
    v: list[torch.Tensor]
    origin: Origin
    sha256: str

    @property
    def kv_format(self) -> str:
        """The storage format that the scales are for: e4m3 or int8."""
        return self.origin.kv_format


def tensor_name(layer: int, kind: str) -> str:
    """The name of a layer's scales in a file; kind: k or v."""
    return f"model.layers.{layer}.self_attn.{kind}_scale"


def load(path: str | Path, layers: int, kv_heads: int) -> Scales:
    """Read the scales of a model with so many layers and KV heads; a scale per tensor is repeated for each head.

    Raises Problem("scales") for a file that is not exactly that, with finite, normal, positive scales.
    """
    return _parse(_read(Path(path)), Path(path), layers, kv_heads)


def check_model(scales: Scales, path: str | Path, config: Path | None) -> None:
    """Raise Problem("scales") unless the scales of `path` were made with this config.json, the served model's."""
    if config is None or hashlib.sha256(config.read_bytes()).hexdigest() != scales.origin.config_sha256:
        message = f"{path} was made for {scales.origin.model}, with another config.json than the served model's"
        raise Problem("scales", f"{message}, {config or 'which was not found'}", _remedy(scales.kv_format))


def check_format(scales: Scales, path: str | Path, kv_format: str) -> None:
    """Raise Problem("scales") unless the scales of `path` are for this format of the served KV cache, e4m3 or int8."""
    if scales.kv_format != kv_format:
        message = f"{path} has scales for {scales.kv_format}, the KV cache stores {kv_format}"
        raise Problem("scales", message, _remedy(kv_format))


def check_target(path: Path) -> None:
    """Raise Problem("file") unless `path` can be written: absent in an existing folder, or a scale file of ours."""
    if not path.parent.is_dir():
        raise Problem("file", f"no folder {path.parent}", "create it, or give --out another path")
    if path.is_symlink() or path.exists():
        try:
            if path.is_symlink() or not path.is_file():
                raise Problem("scales", f"{path} is no regular file", REMEDY)
            _origin(_read(path), path)
        except Problem as problem:
            message = f"{path} exists and is no scale file of fp8-sinks; it is left as it is"
            raise Problem("file", message, "give --out another path, or remove that file") from problem


def write(path: Path, k: Sequence[torch.Tensor], v: Sequence[torch.Tensor], origin: Origin, kv_heads: int) -> Scales:
    """Write a scale file, whole or not at all, and return it as `load` does.

    k, v: for each layer fp32 [kv_heads], or [1] for all heads; k of int8 [kv_heads, head_dim]. Raises Problem as
    `check_target` does, "scales" for scales that `load` would refuse, "disk" where the file cannot be written.
    """
    tensors = {tensor_name(layer, "k"): scale for layer, scale in enumerate(k)}
    tensors |= {tensor_name(layer, "v"): scale for layer, scale in enumerate(v)}
    data = bytes_of(tensors, {key: str(value) for key, value in origin.model_dump().items()})
    scales = _parse(data, path, len(k), kv_heads)
    check_target(path)
    with files.writing(path.parent):
        files.replace(path, data)
    return scales


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise Problem("scales", f"{path} has {size:,} bytes, a scale file at most {LARGEST_BYTES:,}", REMEDY)
        return path.read_bytes()
    except OSError as error:
        raise Problem("scales", f"cannot read {path}: {error.strerror}", REMEDY) from error


def _parse(data: bytes, path: Path, layers: int, kv_heads: int) -> Scales:
    origin, tensors = _origin(data, path), tensors_of(data)
    names = {tensor_name(layer, kind) for layer, kind in product(range(layers), "kv")}
    if missing := sorted(names - set(tensors)):
        raise Problem("scales", f"{path} lacks {len(missing)} of {len(names)} tensors, first {missing[0]}", REMEDY)
    if foreign := sorted(set(tensors) - names):
        message = f"{path} has tensors that a model of {layers} layers has not, first {foreign[0]}"
        raise Problem("scales", message, REMEDY)
    for name, scale in sorted(tensors.items()):
        if error := _error(scale, _shapes(origin, name, kv_heads)):
            raise Problem("scales", f"{path}: {name}: {error}", REMEDY)
    k, v = ([tensors[tensor_name(layer, kind)] for layer in range(layers)] for kind in "kv")
    if len(sizes := sorted({scale.shape for scale in k if scale.dim() > 1})) > 1:
        raise Problem("scales", f"{path}: layers differ in channels of K: {list(map(list, sizes))}", REMEDY)
    if origin.kv_format == "e4m3":
        k, v = ([scale.expand(kv_heads).clone() for scale in scales] for scales in (k, v))
    return Scales(k, v, origin, hashlib.sha256(data).hexdigest())


def _origin(data: bytes, path: Path) -> Origin:
    """The metadata of a file's content. Raises Problem("scales") for any other file."""
    try:
        tensors_of(data)  # checks the header
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise Problem("scales", f"{path} is no safetensors file: {str(error)[:100]}", REMEDY) from error
    metadata = header.get("__metadata__") or {}
    if MARK not in metadata:
        raise Problem("scales", f"{path} is no scale file of fp8-sinks: no {MARK} in its metadata", REMEDY)
    try:
        return Origin.model_validate(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        message = f"{path}: metadata {key}: {first['msg']} (got {str(first['input'])[:60]!r})"
        raise Problem("scales", message, REMEDY) from error


def _remedy(kv_format: str) -> str:
    command = f"fp8-sinks scales calibrate MODEL --kv-format {kv_format} --text FILE --out FILE.safetensors"
    return f"make a file for this model ({command}) and name it in the profile: `kv_scales: FILE.safetensors`"


def _shapes(origin: Origin, name: str, kv_heads: int) -> tuple[tuple[int, ...], ...]:
    """The shapes that the tensor of this name may have."""
    if origin.kv_format == "e4m3":
        return (kv_heads,), (1,)
    return tuple((kv_heads, head_dim) for head_dim in HEAD_DIMS) if name.endswith("k_scale") else ((kv_heads,),)


def _error(scale: torch.Tensor, shapes: tuple[tuple[int, ...], ...]) -> str | None:
    """What is wrong with a tensor of scales; None if nothing is."""
    if scale.dtype != torch.float32:
        return f"got dtype {scale.dtype}, expected torch.float32"
    if scale.shape not in shapes:
        return f"got shape {list(scale.shape)}, expected {' or '.join(str(list(shape)) for shape in shapes)}"
    wrong = scale[~(scale.isfinite() & (scale >= SMALLEST_SCALE))]
    return f"got a scale of {wrong[0]:g}, expected finite positive numbers" if len(wrong) else None
