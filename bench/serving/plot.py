"""A serving result as a plot: throughput against latency under load, decode rates over the context, and accuracy."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes

from bench.accuracy.plot import accuracy_plot, series_labels
from bench.report.figure import NUMBER, colour_and_marker, curves
from bench.report.numbers import requests
from bench.serving.load import request_times
from bench.serving.load.rate import Rate
from bench.serving.result import ServingRow
from bench.serving.tables import shown_rates

GREY, ALIKE = "#666666", "same number of requests at once"
LABEL_OFFSET = (5, -9)  # points from the slowest marker to its number of requests


class Load(NamedTuple):
    """The sizes of a load, in tokens; its points differ in the requests at once."""

    depth: int
    prompt: int
    output: int


class LoadPoint(NamedTuple):
    """p95_ms: between tokens. tok_s: output tokens per second of all requests, the median of the whole repeats."""

    concurrency: int
    p95_ms: float
    tok_s: float


def serving_plot(title: str, rows: Sequence[ServingRow], path: Path) -> None:
    """Panels for each load, then for each pair of requests at once and output length, the last for accuracy.

    At least one profile has a rate that may be shown, or an accuracy record; its answers stand beside its name.
    """
    measured = loads(rows)
    panels = [partial(_load_panel, rows=rows, load=load) for load in measured]
    panels += [partial(_decode_panel, rows=rows, grid=grid) for grid in _decode_grids(rows, measured)]
    accuracy_plot(title, rows, path, panels)


def loads(rows: Sequence[ServingRow]) -> list[Load]:
    """The loads at which some profile has at least two points that may be shown."""
    candidates = sorted({_load(rate) for row in rows for rate in shown_rates(row)})
    return [load for load in candidates if any(len(load_points(row, load)) > 1 for row in rows)]


def load_points(row: ServingRow, load: Load) -> list[LoadPoint]:
    """A profile's points of a load that may be shown, in order of requests at once."""
    return sorted(
        LoadPoint(rate.concurrency, itl.p95, median(request_times.token_rates(rate.whole_repeats)))
        for rate in shown_rates(row)
        if _load(rate) == load and (itl := request_times.latencies(rate.whole_repeats).itl)
    )


def _load(rate: Rate) -> Load:
    return Load(rate.depth, rate.prompt, rate.output)


def _decode_grids(rows: Sequence[ServingRow], drawn: Sequence[Load]) -> list[tuple[int, int]]:
    """Pairs of requests at once and output length that get a decode panel.

    Those with a point that no load panel shows, and the fewest requests where several contexts are measured.
    """
    of_grid: dict[tuple[int, int], set[Load]] = {}
    for row in rows:
        for rate in shown_rates(row):
            of_grid.setdefault((rate.concurrency, rate.output), set()).add(_load(rate))
    fewest = min((concurrency for concurrency, _ in of_grid), default=0)
    return sorted(
        grid
        for grid, measured in of_grid.items()
        if not measured <= {*drawn} or (grid[0] == fewest and len(measured) > 1)
    )


def _load_panel(panel: Axes, rows: Sequence[ServingRow], load: Load) -> None:
    """Throughput over the p95 time between tokens, a line per profile, numbers: requests at once.

    Dotted lines join several profiles' points of the same number of requests.
    """
    points_by_label = {label: load_points(row, load) for label, row in zip(series_labels(rows), rows, strict=True)}
    for index, (label, points) in enumerate(points_by_label.items()):
        if points:
            panel.plot(_x(points), _y(points), label=label, markersize=5, **colour_and_marker(index))
    shown = [point for points in points_by_label.values() for point in points]
    for concurrency in sorted({point.concurrency for point in shown}):
        alike = sorted((point for point in shown if point.concurrency == concurrency), key=lambda point: point.p95_ms)
        if len(alike) > 1:
            panel.plot(_x(alike), _y(alike), color=GREY, linestyle=":", linewidth=1.2, zorder=1, label=ALIKE)
        slowest = alike[-1].p95_ms, alike[-1].tok_s
        panel.annotate(str(concurrency), slowest, LABEL_OFFSET, textcoords="offset points", color=GREY, fontsize=9)
    panel.set_title(f"load, tokens/s; depth {load.depth:,}, {load.prompt:,} in, {load.output:,} out", loc="left")
    panel.set_xlabel("p95 between tokens (ms); numbers: requests at once")
    panel.set_xlim(0, 1.1 * max(_x(shown)))
    panel.set_ylim(0, 1.1 * max(_y(shown)))
    panel.xaxis.set_major_formatter(NUMBER)
    panel.yaxis.set_major_formatter(NUMBER)


def _x(points: Sequence[LoadPoint]) -> list[float]:
    return [point.p95_ms for point in points]


def _y(points: Sequence[LoadPoint]) -> list[float]:
    return [point.tok_s for point in points]


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
    curves(panel, f"decode, tokens/s; {requests(concurrency)}, {output} out", series, {})
    panel.yaxis.set_major_formatter(NUMBER)
    panel.tick_params("x", labelrotation=20 if len(panel.get_xticks()) > 3 else 0)
