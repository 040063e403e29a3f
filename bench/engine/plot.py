"""An engine result as a plot: the step of single requests over the context, and every cell's ratio to stock BF16."""

from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from bench.engine import prediction, ratios
from bench.engine.cells import order, parse
from bench.engine.result import EngineResult, EngineRow
from bench.engine.variants import BASE
from bench.report.figure import NUMBER, colour_and_marker, frame, legend, save

BY_BYTES = "by bytes (roofline)"
PLOTTED = [BASE.name, "stock-fp8", "plugin-fp8"]


def engine_plot(result: EngineResult, rows: list[EngineRow], path: Path) -> None:
    """Left: steps of a single sequence, the roofline's dotted; right: ratios of all cells, the roofline's as bars."""
    names = [name for name in PLOTTED if any(row.variant == name for row in rows)]
    with frame(title(result, rows, names), 4.4, 1, 2) as (figure, (steps, compared)):
        _steps(steps, result, rows, names)
        _ratios(compared, result, rows, names)
        legend(figure, steps, compared)
        save(figure, path)


def title(result: EngineResult, rows: list[EngineRow], names: list[str]) -> str:
    machine = f"{result.shape} (dummy weights) on {result.provenance.machine.name}, vLLM {result.vllm}"
    name = names[-1]
    steps = ratios.to_base(ratios.of_piece(rows, name), name)
    values = [ratio.value for cell, ratio in steps.items() if parse(cell).batch]
    return (
        f"{machine}: {name}'s decode step is {min(values):.2f} to {max(values):.2f} of {BASE.name}'s"
        if values
        else machine
    )


def _steps(panel: Axes, result: EngineResult, rows: list[EngineRow], names: list[str]) -> None:
    shape, contexts = prediction.model(result), set()
    for index, name in enumerate(names):
        single = [row for row in ratios.of_piece(rows, name) if row.variant == name and row.batch == 1]
        points = sorted({row.context: row for row in single}.items())
        contexts |= {context for context, _ in points}
        values = [median(row.step_ms for row in single if row.context == context) for context, _ in points]
        panel.plot([context for context, _ in points], values, label=name, **colour_and_marker(index))
        ceiling = result.pieces[single[0].piece - 1].read_ceiling_bytes_per_s if single else None
        limits = [prediction.step_ms(shape, row, ceiling) for _, row in points]
        if all(limits) and limits:
            style = {"color": colour_and_marker(index)["color"], "linestyle": ":", "label": BY_BYTES}
            panel.plot([context for context, _ in points], limits, **style)
    panel.set_title("one sequence: step (ms)", loc="left")
    panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
    panel.set_xlabel("context (tokens)")
    if contexts:
        panel.set_xscale("log")
        panel.set_xticks(sorted(contexts))
        panel.xaxis.set_major_formatter(NUMBER)
        panel.xaxis.set_minor_locator(NullLocator())


def _ratios(panel: Axes, result: EngineResult, rows: list[EngineRow], names: list[str]) -> None:
    shape = prediction.model(result)
    cells = order({row.cell for row in rows if parse(row.cell).batch})
    for index, name in enumerate(names):
        steps = ratios.to_base(ratios.of_piece(rows, name), name)
        points = [(cells.index(cell), ratio.value) for cell, ratio in steps.items() if cell in cells]
        if points and name != BASE.name:
            panel.plot(*zip(*points, strict=True), label=name, linestyle="none", **colour_and_marker(index))
        limits = [
            (cells.index(cell), prediction.ratio(shape, ratios.of_piece(rows, name), name, BASE.name, cell))
            for cell in steps
            if cell in cells
        ]
        if name == names[-1] and name != BASE.name:
            for x, limit in [(x, limit) for x, limit in limits if limit]:
                panel.plot([x - 0.35, x + 0.35], [limit, limit], color="#404040", linewidth=1.2, label=BY_BYTES)
    panel.axhline(1, color="#808080", linewidth=1.0)
    panel.set_title(f"step over {BASE.name}'s", loc="left")
    panel.set_xlim(-0.5, max(1, len(cells)) - 0.5)
    panel.grid(visible=False, axis="x")
    panel.set_xticks(range(len(cells)), cells, rotation=45, ha="right", rotation_mode="anchor")
