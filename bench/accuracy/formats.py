"""The table of KV cache formats: error and bytes of each profile, with its speed or capacity, on one screen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.accuracy.gate_words import FIGURES, times
from bench.accuracy.result import AccuracyRow
from bench.accuracy.tables import base_of, first_cells
from bench.accuracy.verdicts import RelativeGate
from bench.report import markdown as md
from vllm_launch.model import Model
from vllm_launch.resolved import Resolved, canonical_kv_dtype

SHOWN = ("kl", "top1")  # of FIGURES, beside the mean |Δ log p| of the answers
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "fp8_e4m3": "e4m3", "int8_per_token_head": "int8"}
NOTE = "Error against the reference profile, nats a token; bytes of keys and values in all layers, with their scales."


class Size(NamedTuple):
    """Bytes of a stored value, and of the scale of each token's key or value vector."""

    value: int
    scale: int


SIZES = {
    "bf16": Size(2, 0),
    "fp16": Size(2, 0),
    "e4m3": Size(1, 0),
    "int8": Size(1, 4),
    "int8-static": Size(1, 0),
}


def table(rows: Sequence[AccuracyRow], model: Model, last: str, last_cell: Callable[[AccuracyRow], str]) -> list[str]:
    """A row for each scored profile; no block without a relative gate. last: the header of the last column."""
    scored = [row for row in rows if row.accuracy]
    headers = ["profile", "answers", "KV format", *(FIGURES[name] for name in SHOWN), "ratio", "bytes a token", last]
    lines = [[*_cells(row, base_of(rows), model), last_cell(row)] for row in scored]
    return [md.table(headers, lines), NOTE] if any(row.accuracy.relative for row in scored) else []


def kv_format(resolved: Resolved) -> str:
    """The storage format of a KV cache: as the server recorded it, else by its dtype."""
    dtype = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    return resolved.kv_format or DTYPES.get(dtype, dtype)


def bytes_per_token(model: Model, resolved: Resolved) -> int | None:
    """Bytes of a token's keys and values in all layers; None for an unknown format and where the layers differ."""
    size = SIZES.get(kv_format(resolved))
    if size is None or resolved.kv_skip_layers:
        return None
    return 2 * model.layers * model.kv_heads * (model.head_dim * size.value + size.scale)


def _cells(row: AccuracyRow, base: AccuracyRow, model: Model) -> list[str]:
    record, resolved = row.accuracy, row.resolved
    agreement = getattr(record, record.main_path)
    size = bytes_per_token(model, resolved) if resolved else None
    return [
        *first_cells(row, base)[:2],
        md.text(kv_format(resolved)) if resolved else "not known",
        *(md.text(f"{getattr(agreement, name).value:.3g}") for name in SHOWN),
        md.verdict(_ratios(record.relative)) if record.relative else "-",
        f"{size:,}" if size else "-",
    ]


def _ratios(gate: RelativeGate) -> str:
    """Such as `passed, KL 0.08x fp8, mean |Δ log p| 0.2x fp8`."""
    ratios = [f"{FIGURES[each.figure]} {times(each, each.value)} {gate.profile}" for each in gate.ratios]
    return ", ".join([gate.status, *ratios])
