"""From a model and a text to a scale file: the request, what prevents it, the run, and its rows."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count, NotNegative, Positive, Strict
from vllm_launch import machine
from vllm_launch.model import Model
from vllm_launch.provenance import code_state
from vllm_launch.scales import file, magnitudes

if TYPE_CHECKING:
    from vllm_launch.scales import collect

ARCHITECTURE = "GptOssForCausalLM"
PROMPT_TOKENS = 2048
PERCENTILES = (50.0, 99.0, 99.9, 99.99)
MXFP4_BITS = 4.25  # 4 bits, and 8 bits of scale for 32 of them
OVERHEAD = 1.2  # activations, and what loading holds for a while
GIB = 1 << 30


@dataclass(frozen=True)
class Request:
    """What to calibrate, and how. tokens: of the text, from its start; `file.Origin` describes the others."""

    model: Model
    text: Path
    out: Path
    tokens: int
    kv_format: Literal["e4m3", "int8"]
    percentile: float
    headroom: float
    granularity: Literal["head", "tensor", "channel"]


class Row(Strict):
    """K or V of one KV head: its magnitudes, its scales, and how many values are out of the format's range.

    scales: one, or that of each rotary pair of channels (K of int8), whose norms are then the magnitudes.
    percentiles: percent -> magnitude. saturated_unscaled: with scale 1.0.
    """

    layer: int
    kind: Literal["k", "v"]
    kv_head: int
    amax: NotNegative
    percentiles: dict[str, NotNegative]
    scales: list[Positive]
    values: Count
    saturated_unscaled: Annotated[int, Field(ge=0)]
    saturated_scaled: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Calibration:
    """A written scale file, and a row for K and V of each head."""

    scales: file.Scales
    rows: list[Row]


def device() -> str:
    """Where the model goes: cpu, cuda, or auto (all GPUs, then memory), for which transformers needs accelerate."""
    if not torch.cuda.is_available():
        return "cpu"
    return "auto" if find_spec("accelerate") else "cuda"


def bf16_bytes(model: Model) -> int:
    """About the bytes of the model's weights in BF16."""
    return int(model.weight_bytes * 16 / MXFP4_BITS) if _is_mxfp4(model) else model.weight_bytes


def count_bytes(request: Request) -> int:
    """The bytes of the counts."""
    rows = request.model.head_dim // 2 + 1 if request.kv_format == "int8" else 2
    return request.model.layers * request.model.kv_heads * rows * magnitudes.MAGNITUDES * 8


def problems(request: Request) -> list[Problem]:
    """Everything that prevents the calibration on this machine."""
    return list(_problems(request))


def run(request: Request, show_status: Callable[[str], None]) -> Calibration:
    """Count the model's keys and values over the text and write their scales; problems() has none."""
    from vllm_launch.scales import collect

    content = request.text.read_bytes()
    show_status("tokenizing the text")
    ids = collect.tokenize(request.model, content.decode())[: request.tokens]
    if not ids:
        raise Problem("file", f"{request.text} has no tokens", "give --text a longer file")
    show_status(f"loading {request.model.name}")
    loaded = collect.load(request.model, device(), is_mxfp4=_is_mxfp4(request.model))
    counts = collect.count(loaded, prompts(ids), show_status, request.kv_format)
    _check_finite(counts, request.model)
    show_status("scales")
    scales = [[_scales(of_kind, request) for of_kind in of_layer] for of_layer in counts]
    rows = [
        row
        for layer, of_layer in enumerate(counts)
        for kind, of_kind, scale in zip("kv", of_layer, scales[layer], strict=True)
        for row in _rows(layer, kind, of_kind, scale, request.kv_format)
    ]
    origin = file.Origin(
        kv_format=request.kv_format,
        granularity=request.granularity,
        model=request.model.name,
        config_sha256=hashlib.sha256(_config_path(request.model).read_bytes()).hexdigest(),
        text_sha256=hashlib.sha256(content).hexdigest(),
        tokens=len(ids),
        percentile=request.percentile,
        headroom=request.headroom,
        values=sum(row.values for row in rows),
        saturated_unscaled=sum(row.saturated_unscaled for row in rows),
        saturated_scaled=sum(row.saturated_scaled for row in rows),
        commit=code_state(),
    )
    k, v = zip(*scales, strict=True)
    if request.kv_format == "int8":
        k = [pairs.repeat(1, 2) for pairs in k]  # of channels i and i + head_dim / 2
    return Calibration(file.write(request.out, k, v, origin, request.model.kv_heads), rows)


def prompts(ids: list[int]) -> list[list[int]]:
    """Cut a text into prompts of PROMPT_TOKENS; the last is shorter."""
    return [ids[start : start + PROMPT_TOKENS] for start in range(0, len(ids), PROMPT_TOKENS)]


def _problems(request: Request) -> Iterator[Problem]:
    model = request.model
    if model.architecture != ARCHITECTURE:
        message = f"{model.name} is a {model.architecture}; only {ARCHITECTURE} is calibrated"
        yield Problem("model", message, "give a gpt-oss model")
    for check, subject in ((_check_text, request.text), (file.check_target, request.out), (_check_fits, request)):
        try:
            check(subject)
        except Problem as problem:
            yield problem


def _check_fits(request: Request) -> None:
    """Raise Problem("memory") unless the model in BF16 and the counts fit."""
    target, needed = device(), int(bf16_bytes(request.model) * OVERHEAD) + count_bytes(request)
    free = _free_bytes(target)
    if needed > free:
        message = (
            f"{request.model.name} in BF16 needs {needed / GIB:,.1f} GiB of memory, {free / GIB:,.1f} GiB are free"
        )
        remedy = "pip install accelerate: what the GPU does not hold stays in memory"
        raise Problem("memory", message, remedy if target == "cuda" else "use a machine with more memory")


def _free_bytes(target: str) -> int:
    if target == "cpu":
        return machine.detect("cpu").free_bytes
    gpu = machine.detect("gpu")
    if target == "cuda" or gpu.unified:
        return gpu.free_bytes
    return gpu.gpus * gpu.free_bytes + machine.detect("cpu").free_bytes


def _check_text(path: Path) -> None:
    try:
        path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem("file", f"cannot read {path}: {error}", "give --text a file of UTF-8 text") from error


def _config_path(model: Model) -> Path:
    return Path(model.path) / "config.json"


def _is_mxfp4(model: Model) -> bool:
    quantization = json.loads(_config_path(model).read_bytes()).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4"


def _check_finite(counts: "list[collect.Counts]", model: Model) -> None:
    for layer, of_layer in enumerate(counts):
        for kind, of_kind in zip("kv", of_layer, strict=True):
            for head, wrong in enumerate(magnitudes.not_finite(_per_head(of_kind)).tolist()):
                if wrong:
                    message = f"{model.name}: {kind.upper()} of layer {layer}, head {head} has NaN or infinity"
                    raise Problem("model", message, "check the weights: that model does not compute in BF16")


def _per_head(counts: torch.Tensor) -> torch.Tensor:
    """Add up the rows of each head: [heads, 32768]."""
    return counts.sum(1) if counts.dim() == 3 else counts


def _scales(counts: torch.Tensor, request: Request) -> torch.Tensor:
    """The scale of each row of counts, or [1] for granularity tensor."""
    rows = counts.sum(0, keepdim=True) if request.granularity == "tensor" else counts
    return magnitudes.scales(rows, request.kv_format, request.percentile, request.headroom)


def _rows(layer: int, kind: str, counts: torch.Tensor, scale: torch.Tensor, kv_format: str) -> Iterator[Row]:
    """The rows of K or V of a layer. counts: [heads, 32768] or [heads, pairs, 32768]; scale: of each, or [1]."""
    scale, heads = scale.expand(counts.shape[:-1]), _per_head(counts)
    percentiles = {f"{percent:g}": magnitudes.percentile(heads, percent).tolist() for percent in PERCENTILES}
    columns = {
        "amax": magnitudes.percentile(heads, 100).tolist(),
        "scales": scale.reshape(len(heads), -1).tolist(),
        "values": heads.sum(-1).tolist(),
        "saturated_unscaled": magnitudes.saturated(heads, 1.0, kv_format).tolist(),
        "saturated_scaled": magnitudes.saturated(counts, scale, kv_format).reshape(len(heads), -1).sum(-1).tolist(),
    }
    for head in range(len(heads)):
        yield Row(
            layer=layer,
            kind=kind,
            kv_head=head,
            percentiles={percent: values[head] for percent, values in percentiles.items()},
            **{name: values[head] for name, values in columns.items()},
        )
