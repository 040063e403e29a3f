"""`fp8-sinks scales`."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flashinfer_patches.errors import Problem
from vllm_launch import model as models
from vllm_launch.scales import HEADROOM
from vllm_launch.terminal import exit_on_problems, progress

if TYPE_CHECKING:
    from vllm_launch.scales.calibrate import Calibration, Request, Row

WORST = 6  # rows of the table
LARGEST = {"e4m3": 448, "int8": 127}  # of each format


@click.group()
def scales() -> None:
    """Measure the scales of an FP8 or int8 KV cache, for the key `kv_scales` of a profile."""


@scales.command()
@click.argument("model")
@click.option("--text", required=True, type=click.Path(path_type=Path), help="UTF-8 text such as your users' prompts.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The scale file, .safetensors; replaces none but a scale file of ours.",
)
@click.option(
    "--tokens", type=click.IntRange(1), default=65536, show_default=True, help="Read at most so many of the text."
)
@click.option(
    "--kv-format",
    type=click.Choice(list(HEADROOM)),
    default="e4m3",
    show_default=True,
    help="What the KV cache stores; int8 takes a scale of K for each channel.",
)
@click.option(
    "--percentile",
    type=click.FloatRange(0, 100, min_open=True),
    default=100.0,
    show_default=True,
    help="Percentile of the magnitudes that a scale covers; 100 is the largest.",
)
@click.option(
    "--headroom",
    type=click.FloatRange(1, 64),
    show_default=", ".join(f"{kv_format} {factor:g}" for kv_format, factor in HEADROOM.items()),
    help="Factor on that magnitude, for texts with larger values.",
)
@click.option(
    "--granularity",
    type=click.Choice(["head", "tensor"]),
    show_default="head",
    help="E4M3: one scale per KV head, or per layer's keys and values.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and every problem; load no model.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def calibrate(model, text, out, kv_format, headroom, granularity, dry_run, as_json, **settings):
    """Run a text through MODEL, a folder or owner/name in the local Hugging Face cache, and write its KV scales.

    A scale is percentile x headroom / 448 (E4M3) or / 127 (int8), of the keys after rotary embedding and of the values,
    for each layer. For int8 a channel of K counts the norm of its rotary pair, which holds at every position.
    Needs transformers, which vLLM brings, and memory for the model in BF16.

    Exit codes: 0 done; 2 the text or --out cannot be used; 4 no such model, too little memory, or no transformers.
    """
    if missing := [name for name in ("torch", "transformers") if not find_spec(name)]:
        raise Problem("software", f"not installed: {', '.join(missing)}", "make setup; vLLM brings it")
    from vllm_launch.scales import calibrate as calibration
    from vllm_launch.scales.file import GRANULARITIES

    if granularity and kv_format == "int8":
        raise click.UsageError("--granularity is of e4m3: int8 has a scale of K per channel and of V per head")
    settings["granularity"] = granularity or GRANULARITIES[kv_format][0]
    settings["headroom"] = headroom or HEADROOM[kv_format]
    request = calibration.Request(model=models.find(model), text=text, out=out, kv_format=kv_format, **settings)
    if dry_run:
        click.echo(json.dumps(_plan(request), indent=2) if as_json else "\n".join(_plan_lines(request)))
    exit_on_problems(calibration.problems(request))
    if dry_run:
        return
    with progress() as display:
        result = calibration.run(request, display.status)
    click.echo(json.dumps(_data(result, out), indent=1) if as_json else "\n".join(_lines(result, out)))


def _plan(request: "Request") -> dict:
    from vllm_launch.scales.calibrate import PROMPT_TOKENS, bf16_bytes, count_bytes, device

    return {
        "model": request.model.name,
        "layers": request.model.layers,
        "kv_heads": request.model.kv_heads,
        "device": device(),
        "bf16_bytes": bf16_bytes(request.model),
        "count_bytes": count_bytes(request),
        "text": str(request.text),
        "tokens": request.tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "kv_format": request.kv_format,
        "percentile": request.percentile,
        "headroom": request.headroom,
        "granularity": request.granularity,
        "out": str(request.out),
    }


def _plan_lines(request: "Request") -> Iterator[str]:
    for key, value in _plan(request).items():
        yield f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}"


def _data(result: "Calibration", out: Path) -> dict:
    return {
        "file": str(out),
        "sha256": result.scales.sha256,
        "origin": result.scales.origin.model_dump(),
        "rows": [row.model_dump() for row in result.rows],
    }


def _lines(result: "Calibration", out: Path) -> Iterator[str]:
    """The worst rows, by saturation with scale 1.0 and then by amax, and a summary."""
    origin, largest = result.scales.origin, LARGEST[result.scales.kv_format]
    worst = sorted(result.rows, key=lambda row: (row.saturated_unscaled, row.amax), reverse=True)[:WORST]
    yield f"{'':20} {'amax':>10} {'p99.9':>10} {'scale':>10} {f'over {largest}':>10} {'scaled':>10}"
    yield from map(_line, worst)
    if left := len(result.rows) - len(worst):
        yield f"{left} more with less saturation and smaller amax: --json"
    shares = [f"{count / origin.values:.2e}" for count in (origin.saturated_unscaled, origin.saturated_scaled)]
    counted = f"{origin.tokens:,} tokens; out of {origin.kv_format}'s range"
    yield f"{counted}: {shares[0]} of the values with scale 1.0, {shares[1]} scaled"
    yield f"scales: {out}"


def _line(row: "Row") -> str:
    shares = [row.saturated_unscaled / row.values, row.saturated_scaled / row.values]
    cells = [f"{value:10.4g}" for value in (row.amax, row.percentiles["99.9"], max(row.scales), *shares)]
    return " ".join([f"{f'layer {row.layer} {row.kind.upper()} head {row.kv_head}':20}", *cells])
