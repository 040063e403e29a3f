"""From a model and a text to a scale file: the request, what prevents it, the run, and its rows."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count, NotNegative, Positive, Strict
from vllm_launch import machine
from vllm_launch.model import Model
from vllm_launch.provenance import code_state
from vllm_launch.scales import file, magnitudes

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
    percentile: float
    headroom: float
    granularity: Literal["head", "tensor"]


class Row(Strict):
    """K or V of one KV head: its magnitudes, its scale, and how many values are out of E4M3's range.

    percentiles: percent -> magnitude. saturated_unscaled: with scale 1.0.
    """

    layer: int
    kind: Literal["k", "v"]
    kv_head: int
    amax: NotNegative
    percentiles: dict[str, NotNegative]
    scale: Positive
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
    counts = collect.count(loaded, prompts(ids), show_status)
    _check_finite(counts, request.model)
    show_status("scales")
    scales = [
        [magnitudes.e4m3_scales(kind, request.percentile, request.headroom, request.granularity) for kind in layer]
        for layer in counts
    ]
    rows = [row for index, layer in enumerate(counts) for row in _rows(index, layer, scales[index])]
    origin = file.Origin(
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
    return Calibration(file.write(request.out, k, v, origin, request.model.kv_heads), rows)


def prompts(ids: list[int]) -> list[list[int]]:
    """Cut a text into prompts of PROMPT_TOKENS; the last is shorter."""
    return [ids[start : start + PROMPT_TOKENS] for start in range(0, len(ids), PROMPT_TOKENS)]


def _problems(request: Request) -> Iterator[Problem]:
    model = request.model
    if model.architecture != ARCHITECTURE:
        message = f"{model.name} is a {model.architecture}; only {ARCHITECTURE} is calibrated"
        yield Problem("model", message, "give a gpt-oss model")
    for check, subject in ((_check_text, request.text), (file.check_target, request.out), (_check_fits, model)):
        try:
            check(subject)
        except Problem as problem:
            yield problem


def _check_fits(model: Model) -> None:
    """Raise Problem("memory") unless the model in BF16 fits."""
    target, needed = device(), int(bf16_bytes(model) * OVERHEAD)
    free = _free_bytes(target)
    if needed > free:
        message = f"{model.name} in BF16 needs {needed / GIB:,.1f} GiB of memory, {free / GIB:,.1f} GiB are free"
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


def _check_finite(counts: list[torch.Tensor], model: Model) -> None:
    for layer, of_layer in enumerate(counts):
        for kind, wrong in zip("kv", magnitudes.not_finite(of_layer).tolist(), strict=True):
            if any(wrong):
                head = next(head for head, number in enumerate(wrong) if number)
                message = f"{model.name}: {kind.upper()} of layer {layer}, head {head} has NaN or infinity"
                raise Problem("model", message, "check the weights: that model does not compute in BF16")


def _rows(layer: int, counts: torch.Tensor, scales: list[torch.Tensor]) -> Iterator[Row]:
    """The rows of a layer. counts: int64 [2, kv_heads, 32768], of K and of V; scales: of K and of V."""
    for kind, of_kind, scale in zip("kv", counts, scales, strict=True):
        per_head = scale.expand(len(of_kind))
        percentiles = {f"{percent:g}": magnitudes.percentile(of_kind, percent).tolist() for percent in PERCENTILES}
        columns = {
            "amax": magnitudes.percentile(of_kind, 100).tolist(),
            "scale": per_head.tolist(),
            "values": of_kind.sum(-1).tolist(),
            "saturated_unscaled": magnitudes.saturated(of_kind, 1.0).tolist(),
            "saturated_scaled": magnitudes.saturated(of_kind, per_head).tolist(),
        }
        for head in range(len(of_kind)):
            yield Row(
                layer=layer,
                kind=kind,
                kv_head=head,
                percentiles={percent: values[head] for percent, values in percentiles.items()},
                **{name: values[head] for name, values in columns.items()},
            )
