"""`fp8-sinks bench compare A B` for engine results: ratios to stock BF16 in A and in B.

Steps are compared across pieces for another number of GPUs alone, where the ratio to fewer is the question.
"""

import json
import math
from statistics import median

from bench.engine import ratios
from bench.engine.cells import order, parse
from bench.engine.result import EngineResult, EngineRow
from bench.engine.variants import BASE, NAMES
from bench.record import noise
from bench.record.noise import Ratio
from bench.report.numbers import aligned
from flashinfer_patches.errors import Problem

NOTE = (
    "Ratios are to stock BF16 of the same piece: steps, below 1 is faster; where the cache is full tokens/s, above 1 is"
    " faster. ±: the noise of both, as far as known."
)
SCALING_NOTE = (
    "B/A of the variant itself: steps, below 1 is faster; where the cache is full tokens/s, and capacity, above 1 is"
    " more. The pieces are two machines or two times: ± is the noise of the starts alone."
)


def compare(a: EngineResult, b: EngineResult, *, force: bool, as_json: bool) -> str:
    """The comparison of B with A as text or JSON. Raises Problem("compare") for another model, routing or GPU, unless
    `force`; vLLM, compilation and the number of GPUs may differ.
    """
    sides = [
        {"shape": result.shape, "routing": result.routing, "GPU": result.provenance.machine.name} for result in (a, b)
    ]
    changed = [f"{name}: {value} | {sides[1][name]}" for name, value in sides[0].items() if value != sides[1][name]]
    if changed and not force:
        remedy = "compare results of one model, routing and GPU, or add --force"
        raise Problem("compare", f"{a.id} and {b.id} differ: {'; '.join(changed)}", remedy)
    points, scaled = compared(a, b), scaling(a, b)
    if as_json:
        content = {"a": a.id, "b": b.id, "differences": changed, "points": points, "scaling": scaled}
        return json.dumps(content, indent=1)
    lines = [["variant", "sequences x context", "A", "B", "B/A"]]
    lines += [
        [point["variant"], parse(point["cell"]).words, *map(_text, ("a", "b", "ratio"), [point] * 3)]
        for point in points
    ]
    heads = [
        f"{name}: {side.id}, vLLM {side.vllm}, tensor parallel {side.tensor_parallel}, compilation {side.compilation}"
        for name, side in zip("AB", (a, b), strict=True)
    ]
    text = [*heads, *(f"FORCED: {line}" for line in changed), "", aligned(lines, left=0), "", NOTE]
    if scaled:
        lines = [
            ["variant", "", "B/A"],
            *([point["variant"], _title(point), _text("ratio", point)] for point in scaled),
        ]
        text += ["", aligned(lines, left=0), "", SCALING_NOTE]
    return "\n".join(text)


def compared(a: EngineResult, b: EngineResult) -> list[dict]:
    """The common variants and cells; `noise` of each figure is None where it is not known."""
    points = []
    for name in (name for name in NAMES if name != BASE.name):
        of_a, of_b = (ratios.compared(ratios.of_piece(_measured(side), name), name) for side in (a, b))
        for cell in order([cell for cell in of_a if cell in of_b]):
            pair = of_a[cell], of_b[cell]
            value = pair[1].value / pair[0].value
            spread = value * math.hypot(*(side.noise / side.value for side in pair))
            sides = {"a": pair[0], "b": pair[1], "ratio": Ratio(value, spread)}
            points.append({"variant": name, "cell": cell} | {key: _plain(side) for key, side in sides.items()})
    return points


def scaling(a: EngineResult, b: EngineResult) -> list[dict]:
    """Each common variant's figures of B over its own of A, and its capacity; empty for the same number of GPUs."""
    if a.tensor_parallel == b.tensor_parallel:
        return []
    points = []
    for name in NAMES:
        sides = [ratios.of_piece(_measured(side), name) for side in (b, a)]
        samples = [_samples(side, name) for side in sides]
        for cell in order([cell for cell in samples[0] if cell in samples[1]]):
            ratio = noise.ratios(*({cell: values[cell]} for values in samples))[cell]
            points.append({"variant": name, "cell": cell, "ratio": _plain(ratio)})
        tokens = [
            [row.capacity_tokens for row in side if row.variant == name and row.capacity_tokens] for side in sides
        ]
        if all(tokens):
            ratio = median(tokens[0]) / median(tokens[1])
            points.append({"variant": name, "cell": None, "ratio": {"value": ratio, "noise": None}})
    return points


def _samples(rows: list[EngineRow], name: str) -> dict[str, list[float]]:
    """The judged figure of each start, by cell."""
    figures = {row.cell: ratios.judged_figure(row.cell) for row in rows if row.variant == name}
    return {cell: ratios.samples(rows, name, figure)[cell] for cell, figure in figures.items()}


def _title(point: dict) -> str:
    return "KV capacity" if point["cell"] is None else parse(point["cell"]).words


def _measured(result: EngineResult) -> list:
    return [row for row in result.rows if row.error is None]


def _plain(ratio: Ratio) -> dict:
    return {"value": ratio.value, "noise": None if math.isinf(ratio.noise) else ratio.noise}


def _text(key: str, point: dict) -> str:
    value, noise = point[key]["value"], point[key]["noise"]
    return f"{value:.3f}" if noise is None else f"{value:.3f} ± {noise:.3f}"
