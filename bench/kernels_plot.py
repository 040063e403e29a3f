"""Decode kernels as a plot: how near each is to the read ceiling, and what an FP8 cache gains over BF16."""

from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bench.kernels.gain import compared, gains, short
from bench.kernels.result import KernelRow, KernelsResult
from bench.plots import MARKERS, STYLE, colour_of, legend, new_figure, save


def title(result: KernelsResult) -> str:
    """What the plot says of the first kernel that has both formats."""
    return next((short(result, kernel) for kernel in compared(result)), "Decode kernels: share of the read ceiling")


def kernels_plot(result: KernelsResult, path: Path) -> None:
    """Share of the read ceiling, and time with a BF16 cache over time with FP8, at each shape of the result.

    One colour a kernel, dashed for BF16 caches; its largest relL2 beside its name. One kernel was measured at least.
    """
    rows = [row for row in result.rows if row.error is None]
    places = list(dict.fromkeys((row.batch, row.context) for row in result.rows))
    kernels = list(dict.fromkeys(row.kernel for row in result.rows))
    with style.context(["default", STYLE]):
        figure, (shares, ratios) = new_figure(title(result), 5.2, 1, 2)
        for number, kernel in enumerate(kernels):
            look = {"color": colour_of(number), "marker": MARKERS[number % len(MARKERS)]}
            for kv_format in dict.fromkeys(row.kv_format for row in rows if row.kernel == kernel):
                of_one = [row for row in rows if (row.kernel, row.kv_format) == (kernel, kv_format)]
                worst = max(row.rel_l2 for row in of_one)
                shares.plot(
                    [places.index((row.batch, row.context)) for row in of_one],
                    [_share(row, result.read_ceiling_bytes_per_s) for row in of_one],
                    linestyle="--" if kv_format == "bf16" else "-",
                    label=f"{kernel} {kv_format} (relL2 up to {worst:.1e})",
                    **look,
                )
            if found := gains(result, kernel):
                at = [places.index((gain.row.batch, gain.row.context)) for gain in found]
                ratios.plot(at, [gain.value for gain in found], **look)
        shares.set_title("share of the read ceiling", loc="left")
        shares.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        shares.set_ylim(0, 1.05)
        ratios.set_title("time with BF16 over time with FP8", loc="left")
        ratios.axhline(1, color="#808080", linewidth=1)
        ratios.set_ylim(bottom=0)
        for cell in (shares, ratios):
            _shape_axis(cell, places)
        legend(figure, shares)
        save(figure, path)


def _share(row: KernelRow, ceiling: float) -> float:
    return row.kv_bytes / (row.time_us * 1e-6) / ceiling


def _shape_axis(cell: Axes, places: list[tuple[int, int]]) -> None:
    labels = [f"{batch} x {context:,}" for batch, context in places]
    cell.set_xticks(range(len(places)), labels, rotation=60, ha="right", rotation_mode="anchor")
    cell.set_xlim(-0.5, len(places) - 0.5)
    cell.set_xlabel("batch x context (tokens)")
