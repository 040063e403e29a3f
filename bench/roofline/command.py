"""`fp8-sinks roofline`: the prediction as text, JSON and plot."""

import json
import re
from itertools import product
from math import floor, log10
from pathlib import Path

import click

from bench.report.numbers import aligned
from bench.roofline.prediction import (
    GAINS,
    KV_FORMATS,
    active_experts,
    pays_from,
    predict,
    weight_bytes,
)
from bench.roofline.shape import ModelShape, load
from flashinfer_patches.errors import Problem

BATCHES, CONTEXTS = (1, 8, 32, 128), (2048, 8192, 32768, 131072)


def bandwidth_of(text: str) -> float:
    """Bytes/s of '4.3TB/s' or '273 GB/s' (powers of ten); raises click.BadParameter for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(TB|GB)/s\s*", text)
    if not match or not float(match[1]):
        raise click.BadParameter(f"{text!r} is not a bandwidth: give a number and its unit, 4.3TB/s or 273GB/s")
    return float(match[1]) * {"TB": 1e12, "GB": 1e9}[match[2]]


@click.command()
@click.option("--model", required=True, help="Folder or file of a Hugging Face config, or gpt-oss-20b, gpt-oss-120b.")
@click.option(
    "--bandwidth",
    required=True,
    callback=lambda _context, _option, text: bandwidth_of(text),
    help="Memory bandwidth, preferably measured: 4.3TB/s, 273GB/s.",
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

    A limit that no kernel can beat, not a measurement.
    """
    shape = load(model)
    batches = sorted(set(batches)) or BATCHES
    contexts = (
        sorted(set(contexts))
        or [context for context in CONTEXTS if context <= shape.max_context]
        or [shape.max_context]
    )
    if contexts[-1] > shape.max_context:
        raise click.UsageError(f"--context {contexts[-1]}: {shape.name} ends at {shape.max_context} tokens")
    click.echo((as_json_text if as_json else as_text)(shape, bandwidth, batches, contexts))
    if plot:
        from bench.roofline.plot import roofline_plot  # matplotlib is slow to load

        try:
            roofline_plot(shape, bandwidth, batches, plot)
        except OSError as error:
            remedy = "give --plot a path in a folder that can be written"
            raise Problem("disk", f"cannot write {plot}: {error.strerror}", remedy) from error


def as_json_text(shape: ModelShape, bandwidth: float, batches: list[int], contexts: list[int]) -> str:
    """The prediction as JSON: bytes, seconds, tokens/s; `context` of pays_from is null where FP8 never pays."""
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


def as_text(shape: ModelShape, bandwidth: float, batches: list[int], contexts: list[int]) -> str:
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
            f"{aligned(limits)}\n",
            "Bytes, rate over all requests, and time of a step:",
            aligned(steps),
        ]
    )


def _number(value: float) -> str:
    """Three digits, or all before the point: 1,234, 12.3, 0.0802."""
    digits = 2 - floor(log10(float(f"{value:.3g}"))) if value else 0
    return f"{value:,.{max(0, digits)}f}"
