"""Fit the constants of `cost` to a file of `sweep`, and judge the choice by it.

python -m lowp.sink_decode.fit sweep.json [--iterations 8] [--halves] [--planned] [--only int8 token_scales]

Prints COSTS, SHAPES and PLANNED; then for each kind of shapes the time of the choice over the law, over the fastest
launch and over the choice when the sweep ran: median, 95th percentile, maximum. halves: fit on every second batch,
judge on the others. planned: the constants of planned launches alone, the others held; only: these alone. 0
iterations: judge the constants as they are, in seconds.
"""

import argparse
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median, quantiles

import torch

from lowp.jit.device import Device
from lowp.paged.shapes import KV_HEADS
from lowp.sink_decode import cost, heuristic
from lowp.sink_decode.sweep_shapes import BATCHES, Shape, key

H200 = Device("sm_90a", True, 132, 232_448, 233_472)
USED = 1.25  # launches this much slower than the fastest are not fitted
SAMPLES, SOFT = 6000, 0.03
PLANNED_COSTS = ("plan", "scan", "split", "merge", "rounding", "planned_wave")


def samples(rows: list[dict]) -> list[tuple]:
    """(shape, work, launch, lengths, microseconds) of the launches that are near the fastest."""
    result = []
    for row in rows:
        swept = Shape(*row["shape"])
        lengths = tuple((n, tiles) for tiles, n in Counter(swept.tiles).items())
        shapes = heuristic.candidates(swept.variant, swept.batch, KV_HEADS, swept.bound, H200)
        work = heuristic.work_of(swept.variant, swept.batch, KV_HEADS, H200)
        near = USED * min(row["times"].values())
        timed = [(shape, work, launch, lengths, row["times"].get(key(launch))) for launch, shape in shapes.items()]
        result += [sample for sample in timed if sample[-1] and sample[-1] < near]
    return random.Random(0).sample(result, min(SAMPLES, len(result)))


def set_constants(values: list[float]) -> None:
    fields, shapes = len(cost.Costs._fields), []
    cost.COSTS = cost.Costs(*values[:fields])
    for i, shape in enumerate((*cost.SHAPES, *cost.PLANNED)):
        start, step_8, step_16 = values[fields + 3 * i : fields + 3 * i + 3]
        shapes.append(shape._replace(start=start, step_8=step_8, step_16=step_16))
    cost.SHAPES, cost.PLANNED = tuple(shapes[: len(cost.SHAPES)]), tuple(shapes[len(cost.SHAPES) :])
    heuristic.SHAPES, heuristic.PLANNED = cost.SHAPES, cost.PLANNED
    heuristic.choose.cache_clear()


def constants() -> list[float]:
    shapes = (*cost.SHAPES, *cost.PLANNED)
    return [*cost.COSTS, *(value for shape in shapes for value in (shape.start, shape.step_8, shape.step_16))]


def errors(logs: torch.Tensor, data: list[tuple]) -> torch.Tensor:
    set_constants(logs.exp().tolist())
    tables = [{shape[:4]: shape for shape in table} for table in (cost.PLANNED, cost.SHAPES)]
    times = [cost.call_us(work, tables[x.cluster > 0][shape[:4]], x, n) / us for shape, work, x, n, us in data]
    return torch.tensor(times, dtype=torch.float64).log()


def planned_constants() -> list[int]:
    """Which constants planned launches alone have."""
    fields, shapes = [cost.Costs._fields.index(name) for name in PLANNED_COSTS], 3 * len(cost.PLANNED)
    return [*fields, *range(len(constants()) - shapes, len(constants()))]


def fit_constants(data: list[tuple], iterations: int, free: list[int]) -> None:
    """Levenberg-Marquardt on the logarithms of the `free` constants; outliers count less (soft L1)."""
    logs, damping = torch.tensor(constants(), dtype=torch.float64).log(), 1.0
    units = torch.eye(len(logs), dtype=torch.float64)[free]
    residuals = errors(logs, data)
    for _ in range(iterations):
        nudged = [errors(logs + 1e-4 * unit, data) for unit in units]
        jacobian = (torch.stack(nudged, 1) - residuals[:, None]) / 1e-4
        weights = (1 + (residuals / SOFT) ** 2) ** -0.5
        normal = jacobian.T @ (weights[:, None] * jacobian) + damping * torch.eye(len(free))
        moved = logs - units.T @ torch.linalg.solve(normal, jacobian.T @ (weights * residuals))
        new = errors(moved, data)
        better = loss(new) < loss(residuals)
        logs, residuals, damping = (moved, new, damping / 4) if better else (logs, residuals, damping * 8)
        print(f"rms {residuals.std():.4f}", flush=True)
    set_constants(logs.exp().tolist())


def loss(residuals: torch.Tensor) -> float:
    return ((1 + (residuals / SOFT) ** 2).sqrt() - 1).sum().item()


def print_judgement(rows: list[dict]) -> None:
    classes, absent = defaultdict(list), 0
    for row in rows:
        swept, times = Shape(*row["shape"]), row["times"]
        near = swept.bound <= heuristic.NEAR_TOKENS
        us = times.get(key(heuristic.choose(swept.variant, swept.batch, KV_HEADS, swept.bound, H200, near)))
        absent += us is None
        table = "window" if swept.window_left >= 0 else "near bound" if near else "wide"
        length = "one long" if swept.kind == "one" else "short" if swept.tokens < 64 else ""
        if us:
            ratios = us / row["law_us"], us / min(times.values()), us / times[row["chosen"]]
            classes[swept.kv_format, table, length].append(ratios)
    print("kind: shapes; chosen / law; / fastest; / chosen when swept")
    for name, members in sorted(classes.items()):
        print(" ".join(name), len(members), *map(summary, zip(*members, strict=True)), sep="; ")
    print(f"{absent} choices were not timed at their shape")


def summary(ratios: tuple[float, ...]) -> str:
    high = quantiles(ratios, n=20, method="inclusive")[-1] if len(ratios) > 1 else ratios[0]
    return f"{median(ratios):.3f} {high:.3f} {max(ratios):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--planned", action="store_true")
    parser.add_argument("--only", choices=cost.Costs._fields, nargs="+", default=())
    options = parser.parse_args()
    rows = [row for row in json.loads(options.file.read_text())["rows"] if row["chosen"] in row["times"]]
    fitted = [row for row in rows if not options.halves or row["shape"][1] in BATCHES[::4] + BATCHES[1::4]]
    data, free = samples(fitted), list(range(len(constants())))
    if options.planned:
        data, free = [sample for sample in data if sample[2].cluster == 0], planned_constants()
    free = [cost.Costs._fields.index(name) for name in options.only] or free
    fit_constants(data, options.iterations, free)
    print(cost.COSTS, *cost.SHAPES, "planned", *cost.PLANNED, sep="\n")
    print_judgement([row for row in rows if not options.halves or row not in fitted])


if __name__ == "__main__":
    main()
