"""A serving result as a plot: decode rates over the context, and the accuracy beside them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes

from bench.accuracy.plot import accuracy_plot, series_labels
from bench.report.figure import NUMBER, curves
from bench.report.numbers import requests
from bench.serving.result import ServingRow
from bench.serving.tables import shown_rates


def serving_plot(title: str, rows: Sequence[ServingRow], path: Path) -> None:
    """A panel for each pair of requests at once and output length, the last for accuracy.

    At least one profile has a rate that may be shown, or an accuracy record; its answers stand beside its name.
    """
    grids = sorted({(rate.concurrency, rate.output) for row in rows for rate in shown_rates(row)})
    accuracy_plot(title, rows, path, [partial(_decode_panel, rows=rows, grid=grid) for grid in grids])


def _decode_panel(panel: Axes, rows: Sequence[ServingRow], grid: tuple[int, int]) -> None:
    """Median decode rate (tokens/s), a line per profile; bars show the range of the samples."""
    series = {
        label: sorted(
            (rate.context, median(rate.decode_tok_s), min(rate.decode_tok_s), max(rate.decode_tok_s))
            for rate in shown_rates(row)
            if (rate.concurrency, rate.output) == grid
        )
        for label, row in zip(series_labels(rows), rows, strict=True)
    }
    concurrency, output = grid
    curves(panel, f"decode, tokens/s; {requests(concurrency)}, {output} tokens out", series, {})
    panel.yaxis.set_major_formatter(NUMBER)
