"""A serving result as a plot: decode rates over the context, and the accuracy beside them."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes

from bench.accuracy.plot import accuracy_panel, series_labels
from bench.report.figure import NUMBER, curves, frame, legend, save
from bench.report.numbers import requests
from bench.serving.result import ServingRow
from bench.serving.tables import shown_rates


def serving_plot(title: str, rows: Sequence[ServingRow], path: Path) -> None:
    """A panel for each pair of requests at once and output length, the last for accuracy.

    At least one profile has a rate that may be shown, or an accuracy record; its answers stand beside its name.
    """
    grids = sorted({(rate.concurrency, rate.output) for row in rows for rate in shown_rates(row)})
    count = len(grids) + any(row.accuracy for row in rows)
    columns = min(2, count)
    with frame(title, 1.4 + 2.7 * -(-count // columns), -(-count // columns), columns) as (figure, panels):
        for panel, grid in zip(panels, grids, strict=False):
            _decode_panel(panel, rows, *grid)
        if count > len(grids):
            accuracy_panel(panels[len(grids)], rows)
        for panel in panels[count:]:
            panel.set_visible(False)
        legend(figure, *panels[:count])
        save(figure, path)


def _decode_panel(panel: Axes, rows: Sequence[ServingRow], concurrency: int, output: int) -> None:
    """Median decode rate (tokens/s), a line per profile; bars show the range of the samples."""
    series = {
        label: sorted(
            (rate.context, median(rate.decode_tok_s), min(rate.decode_tok_s), max(rate.decode_tok_s))
            for rate in shown_rates(row)
            if (rate.concurrency, rate.output) == (concurrency, output)
        )
        for label, row in zip(series_labels(rows), rows, strict=True)
    }
    curves(panel, f"decode, tokens/s; {requests(concurrency)}, {output} tokens out", series, {})
    panel.yaxis.set_major_formatter(NUMBER)
