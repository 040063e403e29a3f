"""Accuracy as a plot: mean |Δ log p| through decode, or else through prefill, over the context."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes

from bench.accuracy.result import AccuracyRow
from bench.accuracy.tables import answers, base_of
from bench.report.figure import curves, frame, legend, save


def accuracy_plot(title: str, rows: Sequence[AccuracyRow], path: Path, draws: Sequence[Callable] = ()) -> None:
    """A panel for each of `draws`, the last for the accuracy records; at least one panel is drawn."""
    draws = [*draws, *([partial(_accuracy_panel, rows=rows)] if any(row.accuracy for row in rows) else [])]
    columns = min(2, len(draws))
    lines = -(-len(draws) // columns)  # rounded up
    with frame(title, 1.4 + 2.7 * lines, lines, columns) as (figure, panels):
        for draw, panel in zip(draws, panels, strict=False):
            draw(panel)
        for panel in panels[len(draws) :]:
            panel.set_visible(False)
        legend(figure, *panels[: len(draws)])
        save(figure, path)


def series_labels(rows: Sequence[AccuracyRow]) -> list[str]:
    """Each profile with its accuracy record, so that no speed stands without it."""
    return [f"{row.profile} ({answers(row, base_of(rows))})" for row in rows]


def _accuracy_panel(panel: Axes, rows: Sequence[AccuracyRow]) -> None:
    """Mean |Δ log p| with its 95% interval, a line per profile, its gate at a context (else over all) dashed."""
    bounds, series = {}, {}
    for label, row in zip(series_labels(rows), rows, strict=True):
        series[label] = []
        for entry in row.accuracy.contexts if row.accuracy else ():
            mean = getattr(entry, row.accuracy.main_path).mean_abs_delta
            interval = (mean.value, mean.value) if mean.low is None else (mean.low, mean.high)
            series[label].append((entry.context, mean.value, *interval))
        for gate in row.accuracy.gates if row.accuracy else ():
            if (gate.path, gate.figure) == (row.accuracy.main_path, "mean_abs_delta") and gate.bound is not None:
                bounds[label] = gate.bound
    curves(panel, "mean |Δ log p| (nats); dashed: its gate", series, bounds)
