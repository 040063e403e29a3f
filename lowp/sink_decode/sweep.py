"""Measure every launch that fits, over shapes as a server and the bench meet them: what the choice is fitted to.

python -m lowp.sink_decode.sweep --seconds 430 --ceiling BYTES_PER_S --out sweep.json [--kv-formats int8 ...]
Shapes in the order of what they tell; stops at the budget. `fit.py` reads the file.
"""

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from lowp.jit import launcher
from lowp.jit.device import Device, device_of
from lowp.paged.call import address
from lowp.paged.cases import Case, build
from lowp.paged.inputs import from_cache, large_cache
from lowp.paged.reference import reference
from lowp.paged.shapes import CACHES, HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS
from lowp.sink_decode import build as builds
from lowp.sink_decode import launch as launching
from lowp.sink_decode import make_workspace
from lowp.sink_decode.call import Call
from lowp.sink_decode.resources import Launch, Variant
from lowp.sink_decode.sweep_shapes import KINDS, KV_FORMATS, MOST_TOKENS, TABLES, Shape, key, launches_at, shapes

ROTATE_BYTES, MOST_CALLS, LEAST_US = 128 << 20, 400, 400
DEVICE = "cuda"
MOST_ERROR = 5e-3  # relL2 of a head, as rounding to BF16 alone may cost
QUICK, FULL, SURVIVORS = 3, 7, 1.15  # replays; those within SURVIVORS of the fastest get FULL ones
CASES = (
    Case((5000, 17, 4200), table_tokens=20000),
    Case((3000, 17, 2500) * 7, table_tokens=20000),
    Case((*(9000,) * 17, 0), table_tokens=20000, poison=False),
    Case((1, 0, 15, 16, 17, 31, 33, 64, 1000, 2047, 2500)),
    Case((3000, 2047, 777, 0), sinks=1e4),
    Case((3000, 2047, 777, 0), sinks=-math.inf, growth=60.0),
)


def compile_launch(arch: str, variant: Variant, launch: Launch) -> str | None:
    """Compile into the cache; return the error, if any."""
    try:
        builds.cubin(arch, variant, launch)
    except Exception as error:
        return f"{variant} {launch}: {error}"
    return None


def compile_all(todo: list[Shape], device: Device, processes: int) -> None:
    """Compile every candidate of the shapes, in new processes."""
    pairs = {(shape.variant, replace(x, overlap=True)): None for shape in todo for x in launches_at(shape, device)}
    start = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        errors = list(pool.map(compile_launch, itertools.repeat(device.arch), *zip(*pairs, strict=True), chunksize=4))
    print(f"{len(pairs)} launches compiled in {time.perf_counter() - start:.1f} s", flush=True)
    print(*[error for error in errors if error], sep="\n", flush=True)


class Bench:
    """Caches of the formats, allocated once, and the calls that rotate through parts of them."""

    def __init__(self, ceiling: float, todo: list[Shape]):
        self.ceiling = ceiling
        names, most_rows = dict.fromkeys(shape.kv_format for shape in todo), max(shape.batch for shape in todo)
        self.caches = {name: large_cache(2 * MOST_TOKENS // PAGE_SIZE, name, DEVICE) for name in names}
        self.workspace = make_workspace(most_rows, QUERY_HEADS, KV_HEADS, HEAD_DIM, DEVICE)
        self.stream = torch.cuda.Stream()

    def law_us(self, shape: Shape) -> float:
        return 3.5 + shape.kv_bytes / (0.93 * self.ceiling) * 1e6

    def calls(self, shape: Shape) -> list[Call]:
        """Return the calls of a shape, which rotate through parts of its cache."""
        name, count = shape.kv_format, math.ceil(max(ROTATE_BYTES / shape.kv_bytes, LEAST_US / self.law_us(shape), 4))
        data = from_cache(shape.sizes, min(MOST_CALLS, count), {name: self.caches[name]})
        shared = (data.block_table, data.seq_lens, data.sinks, data.sm_scale, shape.window_left)
        options = {"layout": "HND", "lse": None, "workspace": self.workspace}
        scales = [{"k_scale": None, "v_scale": None} | data.layer_scales(name, layer) for layer in range(len(data.q))]
        layers = zip(data.q, data.caches[name], data.out, scales, strict=True)
        return [Call(q, k, v, *shared, out=out, **scale, **options) for q, (k, v), out, scale in layers]

    def graph(self, calls: list[Call], launch: Launch) -> torch.cuda.CUDAGraph:
        """Capture the calls as `torch.cuda.graph` does, without its garbage collection."""
        kernel, grid, params, cluster, overlap, _ = launching.prepare(calls[0], launch)
        launcher.launch(kernel, grid, params, cluster, overlap)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            graph.capture_begin()
            for call in calls:
                params.q, params.out = call.q.data_ptr(), call.out.data_ptr()
                params.k, params.v = call.k_cache.data_ptr(), call.v_cache.data_ptr()
                params.k_scale, params.v_scale = address(call.k_scale), address(call.v_scale)
                launcher.launch(kernel, grid, params, cluster, overlap)
            graph.capture_end()
        return graph

    def times_us(self, graph: torch.cuda.CUDAGraph, calls: int, replays: int) -> list[float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(replays + 1):  # the first does not count
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / calls)
        return times[1:]

    def measure(self, shape: Shape, device: Device) -> dict:
        """Time every launch, and the fastest ones also with the other overlap."""
        calls, times, errors = self.calls(shape), {}, {}

        def time_launch(launch: Launch, fastest: float) -> None:
            try:
                graph = self.graph(calls, launch)
                samples = self.times_us(graph, len(calls), QUICK)
                if median(samples) < SURVIVORS * fastest:
                    samples += self.times_us(graph, len(calls), FULL)
                times[launch] = median(samples)
            except RuntimeError as error:
                errors[launch] = str(error)[:80]

        todo = launches_at(shape, device)
        for launch in todo:
            time_launch(launch, min(times.values(), default=math.inf))
        for launch in dict.fromkeys((todo[0], *sorted(times, key=times.get)[:3])):
            time_launch(replace(launch, overlap=not launch.overlap), min(times.values()))
        return {
            "shape": astuple(shape),
            "kv_bytes": shape.kv_bytes,
            "law_us": round(self.law_us(shape), 3),
            "chosen": key(todo[0]),
            "times": {key(launch): round(us, 3) for launch, us in times.items()},
            "errors": {key(launch): error for launch, error in errors.items()},
        }


def check_outputs(todo: list[Shape], device: Device) -> list[str]:
    """Compare every planned launch, and every eighth other, with the reference; return what differs."""
    failures, launches = [], defaultdict(dict)
    for shape in todo:
        launches[shape.kv_format, shape.window_left].update(dict.fromkeys(launches_at(shape, device)))
    for (kv_format, window_left), fitting in launches.items():
        checked = [x for x in fitting if x.cluster == 0] + [x for x in fitting if x.cluster][::8]
        cache = CACHES[kv_format]
        options = {"layout": "HND" if cache.value_bytes > 1 else "interleaved", "window_left": window_left}
        options |= {"kv_format": cache.values, "granularity": cache.k_scale, "v_granularity": cache.v_scale}
        for case in CASES:
            growth = 0.0 if cache.values == "int8" else case.growth
            arguments = build(replace(case, **options, growth=growth), DEVICE)
            exact, _ = reference(**arguments)
            for launch in checked:
                error = _error(arguments, exact, launch)
                if error > MOST_ERROR:
                    failures.append(f"{kv_format} {window_left} {case.lengths[:4]} {key(launch)}: relL2 {error:.2e}")
    return failures


def _error(arguments: dict, exact: torch.Tensor, launch: Launch) -> float:
    """Return relL2 of the worst head."""
    out = torch.full_like(arguments["q"], math.nan)
    launching.run(Call(**arguments, out=out, lse=None, workspace=None), launch)
    relative = (out.double() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-6)
    return relative.nan_to_num(nan=math.inf).max().item()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `shapes` are those that it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="budget, compiling included")
    parser.add_argument("--ceiling", type=float, required=True, help="read ceiling of this GPU, bytes per second")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=(), help="these at all --tokens, in this order")
    parser.add_argument("--tokens", type=int, nargs="+", default=(), help="of the longest sequence")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS, help="of lengths: near, uniform, one long")
    parser.add_argument("--tables", choices=TABLES, nargs="+", default=TABLES)
    parser.add_argument("--kv-formats", choices=CACHES, nargs="+", default=KV_FORMATS)
    options = parser.parse_args(arguments)
    options.shapes = shapes(options.batches, options.tokens, options.kinds, options.tables, options.kv_formats)
    if not options.shapes:
        parser.error("no shapes; expected other --batches, --tokens, --kinds or --tables")
    return options


def main() -> None:
    options = parse()
    start, device, todo = time.perf_counter(), device_of(torch.device(DEVICE, 0)), options.shapes
    compile_all(todo, device, options.processes)
    result = {"ceiling": options.ceiling, "failures": check_outputs(todo, device), "rows": []}
    print(
        f"{len(result['failures'])} outputs differ from the reference", *result["failures"][:20], sep="\n", flush=True
    )
    bench, written = Bench(options.ceiling, todo), 0.0
    for shape in todo:
        if time.perf_counter() - start > options.seconds:
            break
        try:
            result["rows"].append(bench.measure(shape, device))
        except Exception as error:
            print(f"{shape}: FAILED: {error}", flush=True)
            continue
        print(line(result["rows"][-1]), flush=True)
        if time.perf_counter() - written > 15:
            options.out.write_text(json.dumps(result))
            written = time.perf_counter()
    options.out.write_text(json.dumps(result))
    print(f"{len(result['rows'])} of {len(todo)} shapes in {time.perf_counter() - start:.0f} s", flush=True)


def line(row: dict) -> str:
    """Format a row: the law, then the choice and the fastest launch over it."""
    times, law = row["times"], row["law_us"]
    best = min(times, key=times.get)
    ratios = f"chosen {times.get(row['chosen'], math.nan) / law:.3f}, best {times[best] / law:.3f}"
    return f"{'x'.join(map(str, row['shape']))}: law {law:.1f}, {ratios} ({best})"


if __name__ == "__main__":
    main()
