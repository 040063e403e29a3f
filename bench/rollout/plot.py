"""A rollout result as a plot: PSNR by frame of the reference and the gates' cells, and FPS against quality."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.report.figure import COLOURS, colour_and_marker, frame, legend, save
from bench.rollout import tables
from bench.rollout.gates import no_speed
from bench.rollout.result import RolloutResult, RolloutRow

LINES = {"teacher-forced": "-", "free-running": ":"}


def rollout_plot(result: RolloutResult, path: Path) -> None:
    rows = plotted(result)
    machine = result.provenance.machine.name
    title = f"World-model rollout on {machine}, {result.sweep.clips} clips of {result.sweep.frames} frames"
    with frame(title, 4.6, 1, 2) as (figure, (by_frame, speeds)):
        _by_frame(by_frame, rows, result.sweep.context)
        _speeds(speeds, result, rows)
        legend(figure, by_frame)
        save(figure, path)


def plotted(result: RolloutResult) -> list[RolloutRow]:
    """The reference and the cells of gates, as many as there are colours for."""
    names = dict.fromkeys([result.sweep.reference, *(gate.cell for gate in result.gates)])
    return [row for row in tables.measured(result) if row.cell in names][: len(COLOURS) + 1]


def style_of(index: int) -> dict[str, str]:
    """Colour and marker of a row: black for the reference, which the others often cover."""
    return colour_and_marker(index - 1) if index else {"color": "#202020", "marker": "o"}


def _by_frame(panel: Axes, rows: list[RolloutRow], context: int) -> None:
    for index, row in enumerate(rows):
        for mode, line in LINES.items():
            values = row.quality[mode].psnr_by_frame
            style = {"color": style_of(index)["color"], "linestyle": line, "linewidth": 1.5}
            label = row.cell if line == "-" else "_nolegend_"
            panel.plot(range(context, context + len(values)), values, label=label, **style)
    panel.set_title("PSNR to the truth (dB); dotted: free-running", loc="left")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("frame")


def _speeds(panel: Axes, result: RolloutResult, rows: list[RolloutRow]) -> None:
    """FPS over the drop of a free-running rollout; the cells of the first panel in colour, the others grey."""
    styles = {row.cell: style_of(index) for index, row in enumerate(rows)}
    for row in tables.measured(result):
        drop = row.quality["free-running"].drop
        if row.times and not no_speed(row):
            style = styles.get(row.cell, {"color": "#B0B0B0", "marker": "."})
            x, error = (0.0, None) if drop is None else (drop.value, drop.low is not None and drop.high - drop.value)
            panel.errorbar(x, row.times.fps_total, xerr=error or None, linestyle="none", **style)
    panel.axvline(result.sweep.drop_db, color="#808080", linewidth=1.0, linestyle="--")
    panel.set_ylim(bottom=0)
    panel.set_title("FPS, without emulated cells", loc="left")
    panel.set_xlabel("drop (dB); dashed: the bound")
