"""Decode kernels as a plot: how near each is to the read ceiling, and what an FP8 cache gains over BF16."""

from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.kernels.claims import floor_us, law_us, ours, over, peers_at
from bench.kernels.gain import BASE, QUANTISED, compared, gains, short
from bench.kernels.peers import OURS
from bench.kernels.result import KernelRow, KernelsResult
from bench.serving.plot import MARKERS, STYLE, colour_of, legend, new_figure, save
from lowp.paged.shapes import Shape

PANEL_INCHES, REST_INCHES = 2.2, 2.2
FORMATS = {QUANTISED: "FP8 (E4M3) cache", BASE: "BF16 cache"}


def title(result: KernelsResult) -> str:
    """What the plot says of our kernel with an FP8 cache; without it, of the first kernel that has both formats."""
    rows = _shown(ours(result, QUANTISED))
    if not rows:
        return next((short(result, kernel) for kernel in compared(result)), "Decode kernels: share of the read ceiling")
    met = sum(over(row, result.read_ceiling_bytes_per_s) <= 0 for row in rows)
    law = f"within the law at {met} of {len(rows)} shapes"
    bests = [others[0].time_us / row.time_us for row in rows if (others := _others(result, row))]
    fast = f"{min(bests):.2f}x to {max(bests):.2f}x as fast as the best other kernel, FP8 or BF16; " if bests else ""
    return f"{OURS} with an FP8 cache: {fast}{law}"


def kernels_plot(result: KernelsResult, path: Path) -> None:
    """Share of the read ceiling with each storage format, and time with BF16 over time with FP8, at each shape.

    Shapes: those that batch and context say all of, if there are any. One colour a kernel; the law dashed where our
    kernel was measured; each kernel's largest relL2 beside its name. One kernel was measured at least.
    """
    ceiling = result.read_ceiling_bytes_per_s
    rows = _shown([row for row in result.rows if row.error is None])
    places = list(dict.fromkeys(row.shape for row in _shown(result.rows)))
    kernels = list(dict.fromkeys(row.kernel for row in rows))
    formats = [name for name in FORMATS if any(row.kv_format == name for row in rows)]
    compares = any(gains(result, kernel) for kernel in kernels)
    panels = len(formats) + compares
    with style.context(["default", STYLE]):
        figure, cells = new_figure(title(result), REST_INCHES + PANEL_INCHES * panels, panels, 1)
        for cell, kv_format in zip(cells, formats, strict=False):
            of_format = [row for row in rows if row.kv_format == kv_format]
            for kernel in kernels:
                of_one = [row for row in of_format if row.kernel == kernel]
                shares = [floor_us(row, ceiling) / row.time_us for row in of_one]
                _line(cell, kernels, kernel, [places.index(row.shape) for row in of_one], shares, _label(rows, kernel))
            if allowed := [row for row in of_format if row.kernel == OURS]:
                cell.plot(
                    [places.index(row.shape) for row in allowed],
                    [floor_us(row, ceiling) / law_us(row, ceiling) for row in allowed],
                    **{"color": "#404040", "linestyle": "--", "linewidth": 1.2, "label": "the law"},
                )
            cell.set_title(f"{FORMATS[kv_format]}: share of the read ceiling", loc="left")
            cell.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            cell.set_ylim(0, 1.05)
        if compares:
            for kernel in kernels:
                found = gains(result, kernel)
                at = [places.index(gain.row.shape) for gain in found]
                _line(cells[-1], kernels, kernel, at, [gain.value for gain in found], _label(rows, kernel))
            cells[-1].set_title("time with BF16 over time with FP8", loc="left")
            cells[-1].axhline(1, color="#808080", linewidth=1)
            cells[-1].set_ylim(bottom=0)
        _shape_axes(cells, places)
        legend(figure, *cells)
        save(figure, path)


def _shown(rows: list[KernelRow]) -> list[KernelRow]:
    return [row for row in rows if row.shape.plain] or rows


def _others(result: KernelsResult, row: KernelRow) -> list[KernelRow]:
    """Other kernels at a row's shape, of both formats, the fastest first."""
    found = [*peers_at(result, row, QUANTISED), *peers_at(result, row, BASE)]
    return sorted(found, key=lambda one: one.time_us)


def _label(rows: list[KernelRow], kernel: str) -> str:
    worst = max(row.rel_l2 for row in rows if row.kernel == kernel)
    return f"{kernel} (relL2 up to {worst:.1e})"


def _line(cell: Axes, kernels: list[str], kernel: str, at: list[int], values: list[float], label: str) -> None:
    """One kernel's line, ours on top of all others."""
    if not at:
        return
    number, first = kernels.index(kernel), kernel == OURS
    look = {"linewidth": 2.6, "zorder": 3} if first else {"linewidth": 1.3, "markersize": 4.5}
    cell.plot(at, values, color=colour_of(number), marker=MARKERS[number % len(MARKERS)], label=label, **look)


def _shape_axes(cells: list[Axes], places: list[Shape]) -> None:
    """Every panel has the shapes' ticks, the lowest their names."""
    for cell in cells:
        cell.set_xticks(range(len(places)), [""] * len(places))
        cell.set_xlim(-0.5, len(places) - 0.5)
    names = [shape.words for shape in places]
    cells[-1].set_xticks(range(len(places)), names, rotation=60, ha="right", rotation_mode="anchor")
    cells[-1].set_xlabel("batch x context (tokens)")
