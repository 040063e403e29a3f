"""What the roofline predicts for cells: the step's ratio to stock BF16 by bytes alone, and its time at the ceiling."""

from collections.abc import Sequence

from bench.engine.models import SHAPES
from bench.engine.ratios import judged_figure
from bench.engine.result import EngineResult, EngineRow
from bench.engine.variants import named
from bench.roofline.prediction import predict
from bench.roofline.shape import ModelShape, load


def model(result: EngineResult) -> ModelShape | None:
    """The result's model; None where dummy weights routed, which read fewer experts than the roofline counts."""
    return load(str(SHAPES[result.shape].config)) if result.routing == "spread" else None


def step_ms(shape: ModelShape | None, row: EngineRow, bandwidth: float | None) -> float | None:
    """Milliseconds that a row's step takes by bytes, shared by its GPUs; None without model or bandwidth."""
    if not (shape and bandwidth):
        return None
    context = row.context if row.lengths == "near" else row.context * 3 // 4
    step_s = predict(shape, named(row.variant).kv_cache, context, row.batch, bandwidth).step_s
    return 1e3 * step_s / row.tensor_parallel


def ratio(shape: ModelShape | None, rows: Sequence[EngineRow], variant: str, base: str, cell: str) -> float | None:
    """A variant's ratio to `base` at a cell, by bytes, in the cell's judged figure; None where it is not known."""
    sides = [
        next((row for row in rows if (row.variant, row.cell) == (name, cell) and row.step_ms), None)
        for name in (variant, base)
    ]
    if shape is None or None in sides:
        return None
    steps = [step_ms(shape, row, 1.0) for row in sides]
    if judged_figure(cell) == "step_ms":
        return steps[0] / steps[1]
    rates = [row.batch / step for row, step in zip(sides, steps, strict=True)]
    return rates[0] / rates[1]
