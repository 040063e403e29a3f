"""`fp8-sinks bench compare A B` for engine results: ratios to stock BF16 in A and in B, never steps across pieces."""

import json
import math

from bench.engine import ratios
from bench.engine.cells import order, parse
from bench.engine.result import EngineResult
from bench.engine.variants import BASE, NAMES
from bench.record.noise import Ratio
from bench.report.numbers import aligned
from flashinfer_patches.errors import Problem

NOTE = (
    "Ratios are to stock BF16 of the same piece: steps, below 1 is faster; where the cache is full tokens/s, above 1 is"
    " faster. ±: the noise of both, as far as known."
)


def compare(a: EngineResult, b: EngineResult, *, force: bool, as_json: bool) -> str:
    """The comparison of B with A as text or JSON. Raises Problem("compare") for another model, routing or GPU, unless
    `force`; vLLM and compilation may differ.
    """
    sides = [
        {"shape": result.shape, "routing": result.routing, "GPU": result.provenance.machine.name} for result in (a, b)
    ]
    changed = [f"{name}: {value} | {sides[1][name]}" for name, value in sides[0].items() if value != sides[1][name]]
    if changed and not force:
        remedy = "compare results of one model, routing and GPU, or add --force"
        raise Problem("compare", f"{a.id} and {b.id} differ: {'; '.join(changed)}", remedy)
    points = compared(a, b)
    if as_json:
        return json.dumps({"a": a.id, "b": b.id, "differences": changed, "points": points}, indent=1)
    lines = [["variant", "sequences x context", "A", "B", "B/A"]]
    lines += [
        [point["variant"], parse(point["cell"]).words, *map(_text, ("a", "b", "ratio"), [point] * 3)]
        for point in points
    ]
    heads = [
        f"{name}: {side.id}, vLLM {side.vllm}, compilation {side.compilation}"
        for name, side in zip("AB", (a, b), strict=True)
    ]
    return "\n".join([*heads, *(f"FORCED: {line}" for line in changed), "", aligned(lines, left=0), "", NOTE])


def compared(a: EngineResult, b: EngineResult) -> list[dict]:
    """The common variants and cells; `noise` of each figure is None where it is not known."""
    points = []
    for name in (name for name in NAMES if name != BASE.name):
        of_a, of_b = (ratios.compared(ratios.of_piece(_measured(side), name), name) for side in (a, b))
        for cell in order([cell for cell in of_a if cell in of_b]):
            pair = of_a[cell], of_b[cell]
            value = pair[1].value / pair[0].value
            noise = value * math.hypot(*(side.noise / side.value for side in pair))
            sides = {"a": pair[0], "b": pair[1], "ratio": Ratio(value, noise)}
            points.append({"variant": name, "cell": cell} | {key: _plain(side) for key, side in sides.items()})
    return points


def _measured(result: EngineResult) -> list:
    return [row for row in result.rows if row.error is None]


def _plain(ratio: Ratio) -> dict:
    return {"value": ratio.value, "noise": None if math.isinf(ratio.noise) else ratio.noise}


def _text(key: str, point: dict) -> str:
    value, noise = point[key]["value"], point[key]["noise"]
    return f"{value:.3f}" if noise is None else f"{value:.3f} ± {noise:.3f}"
