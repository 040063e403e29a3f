"""The roofline of decode: the bytes that a step must read, over the memory's bandwidth. Needs no GPU and no weights.

A step makes one token for each of `batch` requests. It reads the weights once, of the experts those that some token
is routed to, and each request's KV cache. Writing, computing and launching count as nothing, so a predicted rate
is a limit. Bytes are the whole model's: for several GPUs, give the sum of their bandwidths.
"""

import json
import re
from bisect import bisect_left
from itertools import product
from math import floor, log10
from pathlib import Path
from typing import NamedTuple

import click

from bench.shape import Shape, load, of_model
from vllm_launch.errors import Problem
from vllm_launch.model import Model
from vllm_launch.resolved import Resolved, canonical_kv_dtype

# Bytes of a stored value, in full-attention and in sliding-window layers; one scale a tensor counts as nothing.
KV_FORMATS = {"bf16": (2, 2), "fp8": (1, 1), "fp8-skip-sliding": (1, 2)}
GAINS = (1.01, 1.05, 1.10)  # FP8 pays from here: rates over BF16's
BATCHES, CONTEXTS = (1, 8, 32, 128), (2048, 8192, 32768, 131072)


class Point(NamedTuple):
    """One decode step: what it reads, its time, and the rate over all requests of the batch (tokens/s)."""

    kv_format: str
    batch: int
    context: int
    weight_bytes: float
    kv_bytes: float
    step_s: float
    tokens_s: float


def active_experts(shape: Shape, batch: int) -> float:
    """Experts of a layer that a step reads: E (1 - (1 - k/E)^batch), k of E a token, expected, routing uniform."""
    if not shape.experts:
        return 0.0
    return shape.experts * (1 - (1 - shape.experts_per_token / shape.experts) ** batch)


def weight_bytes(shape: Shape, batch: int) -> float:
    """Weights that a step reads, in bytes: all but the experts once, the active experts, an embedding row a token."""
    once = shape.attention_bytes + shape.other_bytes + shape.head_bytes
    return once + active_experts(shape, batch) * shape.expert_bytes + batch * shape.row_bytes


def kv_bytes(shape: Shape, kv_format: str, context: int, batch: int) -> float:
    """KV cache that a step reads, in bytes: `context` tokens a request in full layers, at most the window in others."""
    full, sliding = KV_FORMATS[kv_format]
    windowed = min(context, shape.window)
    return batch * (shape.full_values * context * full + shape.sliding_values * windowed * sliding)


def predict(shape: Shape, kv_format: str, context: int, batch: int, bandwidth: float) -> Point:
    """A decode step at `context` tokens of cache a request, on memory of `bandwidth` bytes/s."""
    weights, cache = weight_bytes(shape, batch), kv_bytes(shape, kv_format, context, batch)
    step_s = (weights + cache) / bandwidth
    return Point(kv_format, batch, context, weights, cache, step_s, batch / step_s)


def predict_measured(model: Model, resolved: Resolved, context: int, batch: int, bandwidth: float) -> Point | None:
    """The prediction beside a measured rate, from its result's model and its row's resolved settings.

    None for a model that no shipped config describes, and for a KV format that is not in KV_FORMATS.
    """
    shape, kv_format = of_model(model), _kv_format(resolved)
    return predict(shape, kv_format, context, batch, bandwidth) if shape and kv_format else None


def _kv_format(resolved: Resolved) -> str | None:
    dtype = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    if dtype in ("bfloat16", "float16"):
        return "bf16"
    if dtype not in ("fp8_e4m3", "fp8_e5m2"):
        return None
    return {(): "fp8", ("sliding_window",): "fp8-skip-sliding"}.get(tuple(resolved.kv_skip_layers))


def gain(shape: Shape, kv_format: str, context: int, batch: int) -> float:
    """Predicted rate over that of a BF16 cache: bytes of a step over bytes of a step, at any bandwidth."""
    weights = weight_bytes(shape, batch)
    of_bf16 = weights + kv_bytes(shape, "bf16", context, batch)
    return of_bf16 / (weights + kv_bytes(shape, kv_format, context, batch))


def pays_from(shape: Shape, kv_format: str, least: float, batch: int) -> int | None:
    """The smallest context (tokens) where gain() is at least `least`; None if the model's longest is too short."""
    contexts = range(1, shape.max_context + 1)  # gain() never falls with the context
    place = bisect_left(contexts, least, key=lambda context: gain(shape, kv_format, context, batch))
    return contexts[place] if place < len(contexts) else None


def bandwidth_of(text: str) -> float:
    """Bytes/s of '4.3TB/s' or '273 GB/s' (powers of ten); raises click.BadParameter for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(TB|GB)/s\s*", text)
    if not found or not float(found[1]):
        raise click.BadParameter(f"{text!r} is not a bandwidth: give a number and its unit, 4.3TB/s or 273GB/s")
    return float(found[1]) * {"TB": 1e12, "GB": 1e9}[found[2]]


@click.command()
@click.option("--model", required=True, help="Folder or file of a Hugging Face config, or gpt-oss-20b, gpt-oss-120b.")
@click.option(
    "--bandwidth",
    required=True,
    callback=lambda _context, _option, text: bandwidth_of(text),
    help="What the memory reads, best as measured: 4.3TB/s, 273GB/s.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    help="Requests at once; repeat for several. [default: 1, 8, 32, 128]",
)
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.IntRange(1),
    help="Tokens in the cache of each; repeat for several. [default: 2048, 8192, 32768, 131072]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, in bytes and seconds.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a plot too, as PNG.")
def roofline(model, bandwidth, batches, contexts, as_json, plot):
    """Predict from bytes alone how fast a model decodes with a BF16 and an FP8 KV cache, and where FP8 pays.

    A limit, not a measurement: it says what no kernel can beat, not what a server reaches.
    """
    shape = load(model)
    batches = sorted(set(batches)) or BATCHES
    contexts = sorted(set(contexts)) or [one for one in CONTEXTS if one <= shape.max_context] or [shape.max_context]
    if contexts[-1] > shape.max_context:
        raise click.UsageError(f"--context {contexts[-1]}: {shape.name} ends at {shape.max_context} tokens")
    click.echo((as_json_text if as_json else as_text)(shape, bandwidth, batches, contexts))
    if plot:
        from bench.roofline_plot import roofline_plot  # matplotlib is slow to load

        try:
            roofline_plot(shape, bandwidth, batches, plot)
        except OSError as error:
            remedy = "give --plot a path in a folder that can be written"
            raise Problem("disk", f"cannot write {plot}: {error.strerror}", remedy) from error


def as_json_text(shape: Shape, bandwidth: float, batches: list[int], contexts: list[int]) -> str:
    """All that is predicted, as JSON: bytes, seconds, tokens/s; `context` of pays_from is null where FP8 never pays."""
    points = [predict(shape, *key, bandwidth) for key in product(KV_FORMATS, contexts, batches)]
    pays = [
        {"kv_format": name, "batch": batch, "gain": least, "context": pays_from(shape, name, least, batch)}
        for name, batch, least in product(list(KV_FORMATS)[1:], batches, GAINS)
    ]
    content = {
        "bandwidth_bytes_s": bandwidth,
        "shape": shape._asdict(),
        "active_experts": {batch: active_experts(shape, batch) for batch in batches},
        "pays_from": pays,
        "points": [point._asdict() for point in points],
    }
    return json.dumps(content, indent=1)


def as_text(shape: Shape, bandwidth: float, batches: list[int], contexts: list[int]) -> str:
    """Two tables in plain text: by batch the weights and where FP8 pays, by batch and context bytes, rate and time."""
    limits = [
        ["", "experts", "weights", "fp8 pays", "", "", "fp8* pays", "", ""],
        ["batch", "a layer", "GB", *[f"{least - 1:.0%}" for least in GAINS] * 2],
    ]
    for batch in batches:
        pays = [pays_from(shape, name, least, batch) for name, least in product(("fp8", "fp8-skip-sliding"), GAINS)]
        weights = [_number(active_experts(shape, batch)), _number(weight_bytes(shape, batch) / 1e9)]
        limits.append([str(batch), *weights, *(f"{context:,}" if context else "never" for context in pays)])
    steps = [
        ["", "", "KV, GB", "", "", "tokens/s", "", "", "gain", "", "step, ms", "", ""],
        ["batch", "context", *["bf16", "fp8", "fp8*"] * 2, "fp8", "fp8*", "bf16", "fp8", "fp8*"],
    ]
    for batch, context in product(batches, contexts):
        points = [predict(shape, name, context, batch, bandwidth) for name in KV_FORMATS]
        cells = [_number(point.kv_bytes / 1e9) for point in points] + [_number(point.tokens_s) for point in points]
        cells += [f"{point.tokens_s / points[0].tokens_s:.3f}x" for point in points[1:]]
        steps.append([str(batch), f"{context:,}", *cells, *(_number(1e3 * point.step_s) for point in points)])
    return "\n".join(
        [
            f"{shape.name}, decode limited by bytes alone at {bandwidth / 1e9:,.10g} GB/s",
            "fp8*: BF16 in sliding-window layers (fp8-skip-sliding)\n",
            "Weights of a step, and the context (tokens) from which FP8 pays by so much:",
            f"{_aligned(limits)}\n",
            "Bytes, rate over all requests, and time of a step:",
            _aligned(steps),
        ]
    )


def _number(value: float) -> str:
    """Three digits, or all before the point: 1,234, 12.3, 0.0802."""
    digits = 2 - floor(log10(float(f"{value:.3g}"))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
