"""The frame of every plot: size, colours, markers, legend, and a PNG without date or version."""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation
from PIL import Image

WIDTH_INCHES, DPI = 9.0, 180
TITLE_CHARACTERS, LEGEND_CHARACTERS = 84, 90  # that fit into a line
# Okabe and Ito's palette without its yellow: distinct for every kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
MARKERS = ["o", "s", "^", "D", "v", "P"]
NUMBER = StrMethodFormatter("{x:,.10g}")
Point = tuple[float, float, float, float]  # x, value, lowest, highest
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E0E0E0",
    "legend.frameon": False,
}


@contextmanager
def frame(title: str, height_inches: float, rows: int, columns: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """A titled figure and its panels, row by row; style holds inside the block."""
    with style.context(["default", STYLE]):
        wrapped = textwrap.fill(title, TITLE_CHARACTERS)
        height_inches += 0.2 * wrapped.count("\n")
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(wrapped, x=0.012, ha="left", fontsize=12, fontweight="bold")
        yield figure, [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]


def colour_and_marker(index: int) -> dict[str, str]:
    """Colour and marker of a series by its position among all series."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def curves(panel: Axes, title: str, series: Mapping[str, Sequence[Point]], bounds: Mapping[str, float]) -> None:
    """Lines over the context with error bars, by label, from zero on; bounds: dashed lines in the labels' colours."""
    for index, (label, points) in enumerate(series.items()):
        if points:
            x, values, lowest, highest = np.array(points).T
            shift = ScaledTranslation((index - (len(series) - 1) / 2) * 4 / 72, 0, panel.figure.dpi_scale_trans)
            style = colour_and_marker(index) | {"capsize": 3, "elinewidth": 1.2, "transform": panel.transData + shift}
            panel.errorbar(x, values, yerr=np.array([values - lowest, highest - values]), label=label, **style)
        if label in bounds:
            panel.axhline(bounds[label], color=colour_and_marker(index)["color"], linestyle="--", linewidth=1.2)
    points = [point for of_label in series.values() for point in of_label]
    contexts = sorted({context for context, *_ in points})
    panel.set_title(title, loc="left")
    panel.set_ylim(0, 1.06 * max([*bounds.values(), *(highest for *_, highest in points)]) or 1)
    panel.set_xscale("log")
    panel.set_xlim(contexts[0] / 1.4, contexts[-1] * 1.4)
    panel.set_xticks(contexts)
    panel.xaxis.set_major_formatter(NUMBER)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("context (tokens)")


def legend(figure: Figure, *panels: Axes) -> None:
    """A legend below the figure with each label of the panels once."""
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in panels]
    handles = {label: handle for pair in pairs for handle, label in pair}
    columns = max(1, min(len(handles), LEGEND_CHARACTERS // max(map(len, handles))))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """Write the figure in 64 colours, whole or not at all."""
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(64)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    picture.save(temporary, format="png", optimize=True)
    temporary.replace(path)
