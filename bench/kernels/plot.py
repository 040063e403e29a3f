"""Decode kernels as a plot: how near each comes to the read ceiling, with each storage format."""

from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.kernels.comparison import LAW, floor_us, law_us, plain
from bench.kernels.grid import KV_FORMATS
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow
from bench.report.figure import colour_and_marker, frame, legend, save


def kernels_plot(title: str, standard: list[KernelRow], ceiling: float, path: Path) -> None:
    """Share of the read ceiling at each plain shape, a panel per storage format, a colour per kernel, the law as bars.

    Lines join points of one batch alone. At least one kernel was measured.
    """
    rows = plain([row for row in standard if row.error is None])
    formats = [name for name in KV_FORMATS if any(row.kv_format == name for row in rows)]
    with frame(title, 1.9 + 2.4 * len(formats), len(formats), 1) as (figure, panels):
        for panel, kv_format in zip(panels, formats, strict=True):
            _panel(panel, rows, kv_format, ceiling)
            panel.tick_params(labelbottom=panel is panels[-1])
        panels[-1].set_xlabel("batch x context (tokens)")
        legend(figure, *panels)
        save(figure, path)


def _panel(panel: Axes, rows: list[KernelRow], kv_format: str, ceiling: float) -> None:
    """One storage format; colours and the axis of shapes are those of all rows."""
    kernels = dict.fromkeys(row.kernel for row in rows)
    rows = sorted(rows, key=lambda row: (row.batch, row.context))
    shapes = list(dict.fromkeys(row.shape for row in rows))
    for index, kernel in enumerate(kernels):
        worst = max(row.rel_l2 for row in rows if row.kernel == kernel)
        style = {"linewidth": 2.6, "zorder": 3} if kernel == OURS else {"linewidth": 1.2, "markersize": 4.5}
        style |= colour_and_marker(index) | {"label": f"{kernel} (relL2 up to {worst:.1e})"}
        measured = [row for row in rows if (row.kernel, row.kv_format) == (kernel, kv_format)]
        for _, group in groupby(measured, key=lambda row: row.batch):
            points = [(shapes.index(row.shape), floor_us(row, ceiling) / row.time_us) for row in group]
            panel.plot(*zip(*points, strict=True), **style)
        if kernel == OURS:
            style = {"color": "#404040", "linewidth": 1.2, "label": f"the law: {LAW}"}
            for row in measured:
                x, share = shapes.index(row.shape), floor_us(row, ceiling) / law_us(row, ceiling)
                panel.plot([x - 0.35, x + 0.35], [share, share], **style)
    panel.set_title(f"{kv_format} cache: share of the read ceiling", loc="left")
    panel.set_ylim(0, 1.05)
    panel.set_xlim(-0.5, len(shapes) - 0.5)
    panel.grid(visible=False, axis="x")
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    names = [shape.words for shape in shapes]
    panel.set_xticks(range(len(shapes)), names, rotation=45, ha="right", rotation_mode="anchor")
