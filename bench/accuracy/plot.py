"""Accuracy as a plot: mean |Δ log p| through decode, over the context."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from bench.accuracy.result import AccuracyRow
from bench.accuracy.tables import answers, base_of
from bench.accuracy.verdicts import AccuracyRecord
from bench.report.figure import Point, curves, frame, legend, save


def accuracy_plot(title: str, rows: Sequence[AccuracyRow], path: Path) -> None:
    """One panel alone; at least one row has a record."""
    with frame(title, 4.2, 1, 1) as (figure, (panel,)):
        accuracy_panel(panel, rows)
        legend(figure, panel)
        save(figure, path)


def series_labels(rows: Sequence[AccuracyRow]) -> list[str]:
    """Each profile with its accuracy record, so that no speed stands without it."""
    return [f"{row.profile} ({answers(row, base_of(rows))})" for row in rows]


def accuracy_panel(panel: Axes, rows: Sequence[AccuracyRow]) -> None:
    """Mean |Δ log p| with its 95% interval, a line per profile, its gate at a context (else over all) dashed."""
    bounds, labels = {}, series_labels(rows)
    for label, row in zip(labels, rows, strict=True):
        for gate in row.accuracy.gates if row.accuracy else ():
            if (gate.path, gate.figure) == ("decode", "mean_abs_delta") and gate.bound is not None:
                bounds[label] = gate.bound
    series = {label: _means(row.accuracy) if row.accuracy else [] for label, row in zip(labels, rows, strict=True)}
    curves(panel, "mean |Δ log p| (nats); dashed: its gate", series, bounds)


def _means(record: AccuracyRecord) -> list[Point]:
    means = [(entry.context, entry.decode.mean_abs_delta) for entry in record.contexts]
    ends = [(mean.value, mean.value) if mean.low is None else (mean.low, mean.high) for _, mean in means]
    return [(context, mean.value, *end) for (context, mean), end in zip(means, ends, strict=True)]
