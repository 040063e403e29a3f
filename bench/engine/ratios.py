"""Ratios of a variant to stock BF16, with their noise. They hold within a piece: one machine, one session."""

from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

from bench.engine.cells import parse
from bench.engine.result import EngineRow
from bench.engine.variants import BASE
from bench.record import noise
from bench.record.noise import Ratio

Figure = Literal["step_ms", "tokens_per_s", "ttft_s", "prefill_tok_s"]
SLOPE = ("1x2048", "1x122880")


class Worst(NamedTuple):
    """The measured cell where a variant gains least over stock BF16."""

    variant: str
    cell: str
    ratio: float


def of_piece(rows: Sequence[EngineRow], variant: str) -> list[EngineRow]:
    """All rows of the last piece that has the variant."""
    last = max((row.piece for row in rows if row.variant == variant), default=0)
    return [row for row in rows if row.piece == last]


def samples(rows: Sequence[EngineRow], variant: str, figure: Figure) -> dict[str, list[float]]:
    """The figure of each start, by cell."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.variant == variant and getattr(row, figure) is not None:
            values.setdefault(row.cell, []).append(getattr(row, figure))
    return values


def to_base(rows: Sequence[EngineRow], variant: str, figure: Figure = "step_ms") -> dict[str, Ratio]:
    """Median over the starts to stock BF16's, by cell; infinite noise where either has a single start.

    Raises ValueError for rows of several pieces.
    """
    if len(pieces := {row.piece for row in rows}) > 1:
        raise ValueError(f"no ratios across pieces: got rows of pieces {', '.join(map(str, sorted(pieces)))}")
    sides = samples(rows, variant, figure), samples(rows, BASE.name, figure)
    repeated = [{cell: values for cell, values in side.items() if len(values) > 1} for side in sides]
    # A single sample makes the noise of all cells infinite: those that are repeated are compared by themselves.
    return noise.ratios(*sides) | noise.ratios(*repeated)


def judged_figure(cell: str) -> Figure:
    """Tokens per second where the cache is full, for batches differ there; else the step."""
    return "tokens_per_s" if parse(cell).batch is None else "step_ms"


def compared(rows: Sequence[EngineRow], variant: str) -> dict[str, Ratio]:
    """Each cell's ratio in its judged_figure()."""
    steps, rates = (to_base(rows, variant, figure) for figure in ("step_ms", "tokens_per_s"))
    return {cell: (rates if judged_figure(cell) == "tokens_per_s" else steps)[cell] for cell in steps}


def verdict(cell: str, ratio: Ratio) -> str:
    """One of noise.VERDICTS."""
    return noise.verdict(ratio, more_is_faster=judged_figure(cell) == "tokens_per_s")


def slope(rows: Sequence[EngineRow], variant: str) -> float | None:
    """Growth of the step between the cells of SLOPE over stock BF16's; None where they are not measured."""
    growth = []
    for name in (variant, BASE.name):
        steps = samples(rows, name, "step_ms")
        if not all(cell in steps for cell in SLOPE):
            return None
        first, last = (median(steps[cell]) for cell in SLOPE)
        growth.append(last - first)
    return growth[0] / growth[1] if growth[1] > 0 else None


def worst(rows: Sequence[EngineRow]) -> Worst | None:
    """The cell, but for a full cache, with the highest step over stock BF16's; None without a variant to compare."""
    names = dict.fromkeys(row.variant for row in rows if row.variant != BASE.name)
    entries = [
        Worst(name, cell, ratio.value)
        for name in names
        for cell, ratio in to_base(rows, name).items()
        if judged_figure(cell) == "step_ms"
    ]
    return max(entries, key=lambda entry: entry.ratio, default=None)
