"""Measure every launch that fits, over shapes as a server and the bench meet them: what the choice is fitted to.

python -m lowp.sink_decode.sweep --seconds 430 --ceiling BYTES_PER_S --out sweep.json [--batches 64 128 ...]
Shapes in the order of what they tell; stops at the budget. `fit.py` reads the file.
"""

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from lowp.jit import launcher
from lowp.jit.device import Device, device_of
from lowp.paged.cases import Case, build
from lowp.paged.inputs import large_cache
from lowp.paged.layouts import k_and_v, tensor_sizes
from lowp.paged.reference import reference
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS
from lowp.paged.tables import block_table
from lowp.sink_decode import build as builds
from lowp.sink_decode import launch as launching
from lowp.sink_decode import make_workspace
from lowp.sink_decode.call import Call
from lowp.sink_decode.resources import Launch, Variant
from lowp.sink_decode.sweep_shapes import KINDS, MOST_TOKENS, TABLES, Shape, key, launches_at, shapes

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
    """Caches of both formats, allocated once, and the calls that rotate through slices of them."""

    def __init__(self, ceiling: float, most_rows: int):
        self.ceiling = ceiling
        self.random = torch.Generator(DEVICE).manual_seed(0)
        pages = 2 * MOST_TOKENS // PAGE_SIZE
        self.caches = {name: large_cache(pages, name, DEVICE).flatten() for name in ("e4m3", "bf16")}
        self.workspace = make_workspace(most_rows, QUERY_HEADS, KV_HEADS, HEAD_DIM, DEVICE)
        self.sinks = torch.randn(QUERY_HEADS, device=DEVICE)
        self.addend = torch.zeros(65536, device=DEVICE)
        self.stream = torch.cuda.Stream()
        additions = self.captured(lambda: [self.addend.add_(1.0) for _ in range(MOST_CALLS)])
        self.addition_us = median(self.times_us(additions, MOST_CALLS, FULL))

    def law_us(self, shape: Shape) -> float:
        return 3.5 + shape.kv_bytes / (0.93 * self.ceiling) * 1e6

    def prepare(self, shape: Shape):
        """Return the call of a shape, and the byte offsets of K and V that its calls rotate through."""
        memory, spans = self.caches[shape.kv_format], [(0, math.ceil(n / PAGE_SIZE)) for n in shape.lengths]
        table, pages = block_table(spans, shape.table_tokens // PAGE_SIZE + 1, self.random)
        sizes = tensor_sizes(shape.layout, pages, PAGE_SIZE, KV_HEADS, HEAD_DIM)
        parts, elements = memory.chunk(len(sizes)), math.prod(sizes[0])  # K and V apart, or both in one
        k, v = k_and_v([part[:elements].view(sizes[0]) for part in parts], HEAD_DIM)
        q = torch.randn(shape.batch, QUERY_HEADS, HEAD_DIM, device=DEVICE).bfloat16()
        seq_lens = torch.tensor(shape.lengths, dtype=torch.int32, device=DEVICE)
        options = (HEAD_DIM**-0.5, shape.window_left, None, None, "HND")
        call = Call(q, k, v, table, seq_lens, self.sinks, *options, torch.empty_like(q), None, self.workspace)
        calls = math.ceil(max(ROTATE_BYTES / shape.kv_bytes, LEAST_US / self.law_us(shape), 4))
        starts = [i % (len(parts[0]) // elements) * elements for i in range(min(MOST_CALLS, calls))]
        return call, [start * memory.element_size() for start in starts]

    def graph(self, call: Call, offsets: list[int], launch: Launch, between: bool = False) -> torch.cuda.CUDAGraph:
        kernel, grid, params, cluster, overlap, _ = launching.prepare(call, launch)
        k, v = params.k, params.v
        launcher.launch(kernel, grid, params, cluster, overlap)

        def calls() -> None:
            for offset in offsets:
                params.k, params.v = k + offset, v + offset
                launcher.launch(kernel, grid, params, cluster, overlap)
                if between:
                    self.addend.add_(1.0)

        return self.captured(calls)

    def captured(self, calls: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture as `torch.cuda.graph`, without its garbage collection."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            graph.capture_begin()
            calls()
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

    def between_us(self, call: Call, offsets: list[int], launch: Launch) -> float:
        """Measure what one call adds to a graph of small additions."""
        graph = self.graph(call, offsets, launch, between=True)
        return median(self.times_us(graph, len(offsets), FULL)) - self.addition_us

    def measure(self, shape: Shape, device: Device) -> dict:
        """Time every launch; the fastest ones also with the other overlap, and with an addition between calls."""
        call, offsets = self.prepare(shape)
        times, between, errors = {}, {}, {}

        def time_launch(launch: Launch, fastest: float) -> None:
            try:
                graph = self.graph(call, offsets, launch)
                samples = self.times_us(graph, len(offsets), QUICK)
                if median(samples) < SURVIVORS * fastest:
                    samples += self.times_us(graph, len(offsets), FULL)
                times[launch] = median(samples)
            except RuntimeError as error:
                errors[launch] = str(error)[:80]

        todo = launches_at(shape, device)
        for launch in todo:
            time_launch(launch, min(times.values(), default=math.inf))
        best = sorted(times, key=times.get)[:3]
        for launch in dict.fromkeys((todo[0], *best)):
            time_launch(replace(launch, overlap=not launch.overlap), min(times.values()))
        for launch, overlap in itertools.product(dict.fromkeys((todo[0], *best[:2])), (True, False)):
            form = replace(launch, overlap=overlap)
            between[form] = self.between_us(call, offsets, form)
        return {
            "shape": astuple(shape),
            "kv_bytes": shape.kv_bytes,
            "law_us": round(self.law_us(shape), 3),
            "chosen": key(todo[0]),
            "times": {key(launch): round(us, 3) for launch, us in times.items()},
            "between": {key(launch): round(us, 3) for launch, us in between.items()},
            "errors": {key(launch): error for launch, error in errors.items()},
        }


def check_outputs(todo: list[Shape], device: Device) -> list[str]:
    """Compare every planned launch, and every eighth other, with the reference; return what differs."""
    failures, launches = [], defaultdict(dict)
    for shape in todo:
        launches[shape.kv_format, shape.window_left].update(dict.fromkeys(launches_at(shape, device)))
    for (kv_format, window_left), fitting in launches.items():
        checked = [x for x in fitting if x.cluster == 0] + [x for x in fitting if x.cluster][::8]
        layout = "interleaved" if kv_format == "e4m3" else "HND"
        for case in CASES:
            case = replace(case, kv_format=kv_format, window_left=window_left, layout=layout)
            arguments = build(case, DEVICE)
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
    options = parser.parse_args(arguments)
    options.shapes = shapes(options.batches, options.tokens, options.kinds, options.tables)
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
    bench, written = Bench(options.ceiling, max(shape.batch for shape in todo)), 0.0
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
