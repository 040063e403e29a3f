"""Decode kernels as a plot: how near each comes to the read ceiling, with each storage format."""

from itertools import groupby, pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.kernels.comparison import LAW_SHARE, LAW_US, floor_us, law_us, plain
from bench.kernels.grid import KV_FORMATS
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.report.figure import colour_and_marker, frame, legend, save
from lowp.paged.shapes import Shape


def kernels_plot(title: str, result: KernelsResult, path: Path) -> None:
    """Share of the read ceiling at each plain shape, a panel per storage format, a colour per kernel, the law as bars.

    Lines join points of one batch alone. At least one kernel was measured.
    """
    rows = plain([row for row in result.rows if row.error is None])
    shapes = sorted({row.shape for row in rows}, key=lambda shape: (shape.batch, shape.context))
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    formats = [name for name in KV_FORMATS if any(row.kv_format == name for row in rows)]
    with frame(title, 1.9 + 2.4 * len(formats), len(formats), 1) as (figure, panels):
        for panel, kv_format in zip(panels, formats, strict=True):
            for index, kernel in enumerate(kernels):
                of_kernel = [row for row in rows if (row.kernel, row.kv_format) == (kernel, kv_format)]
                worst = max(row.rel_l2 for row in rows if row.kernel == kernel)
                weight = {"linewidth": 2.6, "zorder": 3} if kernel == OURS else {"linewidth": 1.2, "markersize": 4.5}
                style = colour_and_marker(index) | weight | {"label": f"{kernel} (relL2 up to {worst:.1e})"}
                _shares(panel, shapes, of_kernel, style, result.read_ceiling_bytes_per_s)
                if kernel == OURS:
                    _law(panel, shapes, of_kernel, result.read_ceiling_bytes_per_s)
            panel.set_title(f"{kv_format} cache: share of the read ceiling", loc="left")
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            panel.set_ylim(0, 1.05)
            _shape_axis(panel, shapes)
        for panel in panels[:-1]:
            panel.tick_params(labelbottom=False)
        panels[-1].set_xlabel("batch x context (tokens)")
        legend(figure, *panels)
        save(figure, path)


def _shares(panel: Axes, shapes: list[Shape], rows: list[KernelRow], style: dict, ceiling: float) -> None:
    """A line for each batch; only the first has the label."""
    in_order = sorted(rows, key=lambda row: shapes.index(row.shape))
    for _, group in groupby(in_order, key=lambda row: row.batch):
        points = [(shapes.index(row.shape), floor_us(row, ceiling) / row.time_us) for row in group]
        panel.plot(*zip(*points, strict=True), **style)
        style = style | {"label": None}


def _law(panel: Axes, shapes: list[Shape], rows: list[KernelRow], ceiling: float) -> None:
    """A bar across each shape: the share that a call within the law reaches."""
    label = f"the law: {LAW_US:g} us + bytes / ({LAW_SHARE:g} x ceiling)"
    for row in rows:
        share, index = floor_us(row, ceiling) / law_us(row, ceiling), shapes.index(row.shape)
        panel.plot([index - 0.35, index + 0.35], [share, share], color="#404040", linewidth=1.2, label=label)
        label = None


def _shape_axis(panel: Axes, shapes: list[Shape]) -> None:
    """A tick for each shape, a line between batches."""
    names = [shape.words for shape in shapes]
    panel.set_xticks(range(len(shapes)), names, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_xlim(-0.5, len(shapes) - 0.5)
    panel.grid(visible=False, axis="x")
    for index, (before, after) in enumerate(pairwise(shapes)):
        if before.batch != after.batch:
            panel.axvline(index + 0.5, color="#C0C0C0", linewidth=0.8)
