"""Accuracy as a plot: mean |Δ log p| through decode, over the context."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from bench.accuracy.result import AccuracyRow
from bench.accuracy.tables import answers
from bench.report.figure import colour_and_marker, context_axis, error_line, frame, legend, save


def accuracy_plot(title: str, rows: Sequence[AccuracyRow], path: Path) -> None:
    """One panel alone; at least one row has a record."""
    with frame(title, 4.2, 1, 1) as (figure, (panel,)):
        accuracy_panel(panel, rows)
        legend(figure, panel)
        save(figure, path)


def series_label(row: AccuracyRow) -> str:
    """The profile with its accuracy record, so that no speed stands without it."""
    return f"{row.profile} ({answers(row)})"


def accuracy_panel(panel: Axes, rows: Sequence[AccuracyRow]) -> None:
    """Mean |Δ log p| with its 95% interval, a line per profile, its gate dashed."""
    highest, contexts = 0.0, set()
    for index, row in enumerate(rows):
        if row.accuracy is None:
            continue
        means = [(entry.context, entry.decode.mean_abs_delta) for entry in row.accuracy.contexts]
        points = [
            (context, mean.value, mean.value, mean.value)
            if mean.low is None
            else (context, mean.value, mean.low, mean.high)
            for context, mean in means
        ]
        error_line(panel, index, len(rows), series_label(row), points)
        gates = [gate for gate in row.accuracy.gates if (gate.path, gate.figure) == ("decode", "mean_abs_delta")]
        bounds = [gate.bound for gate in gates if gate.bound is not None][-1:]  # at a context, where that has its own
        for bound in bounds:
            panel.axhline(bound, color=colour_and_marker(index)["color"], linestyle="--", linewidth=1.2)
        highest = max(highest, *bounds, *(high for *_, high in points))
        contexts |= {context for context, *_ in points}
    panel.set_ylim(0, 1.06 * highest or 1)
    panel.set_title("mean |Δ log p| (nats); dashed: its gate", loc="left")
    context_axis(panel, sorted(contexts))
