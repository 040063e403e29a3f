"""Measure every launch that fits, over shapes as a server and the bench meet them: what the choice is fitted to.

python -m lowp.sink_decode.sweep --seconds 430 --ceiling BYTES_PER_S --out sweep.json
Shapes in the order of what they tell; stops at the budget. `fit.py` reads the file.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from lowp.formats import FORMATS
from lowp.jit import launcher
from lowp.jit.device import Device, device_of
from lowp.paged.cases import Case, build
from lowp.paged.reference import reference
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, PAGE_SIZE, QUERY_HEADS
from lowp.sink_decode import build as builds
from lowp.sink_decode import launch as launching
from lowp.sink_decode import make_workspace
from lowp.sink_decode.call import Call
from lowp.sink_decode.resources import Launch, Variant
from lowp.sink_decode.sweep_shapes import BATCHES, MOST_TOKENS, Shape, key, launches_at, shapes

ROTATE_BYTES, MOST_CALLS, LEAST_US = 128 << 20, 400, 400
BLOCK_BYTES = 64 << 20  # of random values, repeated through the caches
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
    """Compile every candidate of the shapes, in processes of their own."""
    pairs = {}
    for shape in todo:
        for launch in launches_at(shape, device):
            pairs[shape.variant, replace(launch, overlap=True)] = None
    start = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        errors = list(pool.map(compile_launch, itertools.repeat(device.arch), *zip(*pairs, strict=True), chunksize=4))
    print(f"{len(pairs)} launches compiled in {time.perf_counter() - start:.1f} s", flush=True)
    print(*[error for error in errors if error], sep="\n", flush=True)


class Bench:
    """Caches of both formats, allocated once, and the calls that rotate through slices of them."""

    def __init__(self, ceiling: float):
        self.ceiling = ceiling
        self.caches = {name: self._cache(name) for name in ("e4m3", "bf16")}
        self.workspace = make_workspace(max(BATCHES), QUERY_HEADS, KV_HEADS, HEAD_DIM, DEVICE)
        self.sinks = torch.randn(QUERY_HEADS, device=DEVICE)
        self.addend = torch.zeros(65536, device=DEVICE)
        self.addition_us = None
        self.stream = torch.cuda.Stream()

    def _cache(self, kv_format):
        dtype = FORMATS[kv_format].dtype
        block = torch.randn(BLOCK_BYTES // dtype.itemsize, device=DEVICE).to(dtype).view(torch.uint8)
        blocks = 2 * MOST_TOKENS * KV_HEADS * HEAD_DIM * 2 * dtype.itemsize // BLOCK_BYTES + 1
        return block.repeat(blocks)

    def law_us(self, shape: Shape) -> float:
        return 3.5 + shape.kv_bytes / (0.93 * self.ceiling) * 1e6

    def prepare(self, shape: Shape):
        """The call of a shape, and the byte offsets of K and V that its calls rotate through."""
        lengths, dtype = shape.lengths, FORMATS[shape.kv_format].dtype
        counts = [math.ceil(n / PAGE_SIZE) for n in lengths]
        pages, memory = sum(counts), self.caches[shape.kv_format].view(dtype)
        order = torch.randperm(pages, device=DEVICE).int().split(counts)
        table = torch.zeros(shape.batch, shape.table_tokens // PAGE_SIZE + 1, dtype=torch.int32, device=DEVICE)
        for row, entries in enumerate(order):
            table[row, : len(entries)] = entries
        if shape.layout == "interleaved":
            elements = pages * KV_HEADS * PAGE_SIZE * 2 * HEAD_DIM
            both = memory[:elements].view(pages, KV_HEADS, PAGE_SIZE, 2 * HEAD_DIM)
            k, v, span = both[..., :HEAD_DIM], both[..., HEAD_DIM:], memory.numel()
        else:
            elements, span = pages * KV_HEADS * PAGE_SIZE * HEAD_DIM, memory.numel() // 2
            size = (pages, KV_HEADS, PAGE_SIZE, HEAD_DIM)
            k, v = memory[:elements].view(size), memory[span : span + elements].view(size)
        q = torch.randn(shape.batch, QUERY_HEADS, HEAD_DIM, device=DEVICE).bfloat16()
        seq_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        sizes = (HEAD_DIM**-0.5, shape.window_left, None, None, "HND")
        call = Call(q, k, v, table, seq_lens, self.sinks, *sizes, torch.empty_like(q), None, self.workspace)
        calls = max(ROTATE_BYTES / shape.kv_bytes, LEAST_US / self.law_us(shape), 4)
        slices = max(1, span // elements)
        calls = min(MOST_CALLS, math.ceil(calls))
        return call, [i % slices * elements * dtype.itemsize for i in range(calls)]

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
        """What `torch.cuda.graph` does, without its garbage collection."""
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
        """What one call adds to a graph of small additions."""
        if self.addition_us is None:
            graph = self.captured(lambda: [self.addend.add_(1.0) for _ in range(MOST_CALLS)])
            self.addition_us = median(self.times_us(graph, MOST_CALLS, FULL))
        graph = self.graph(call, offsets, launch, between=True)
        return median(self.times_us(graph, len(offsets), FULL)) - self.addition_us

    def measure(self, shape: Shape, device: Device) -> dict:
        """Microseconds of every launch; the fastest ones also without overlap, and with an addition between calls."""
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
    failures = []
    for kv_format, window_left in (("e4m3", -1), ("bf16", -1), ("e4m3", 127)):
        alike = [s for s in todo if s.kv_format == kv_format and (s.window_left >= 0) == (window_left >= 0)]
        launches = list(dict.fromkeys(launch for s in alike for launch in launches_at(s, device)))
        launches = [x for x in launches if x.cluster == 0] + [x for x in launches if x.cluster][::8]
        for case in CASES:
            layout = "interleaved" if kv_format == "e4m3" else "HND"
            case = replace(case, kv_format=kv_format, window_left=window_left, layout=layout)
            arguments = build(case, DEVICE)
            exact, _ = reference(**arguments)
            for launch in launches:
                error = _error(arguments, exact, launch)
                if error > MOST_ERROR:
                    failures.append(f"{kv_format} {window_left} {case.lengths[:4]} {key(launch)}: relL2 {error:.2e}")
    return failures


def _error(arguments: dict, exact: torch.Tensor, launch: Launch) -> float:
    """relL2 of the worst head."""
    out = torch.full_like(arguments["q"], math.nan)
    launching.run(Call(**arguments, out=out, lse=None, workspace=None), launch)
    relative = (out.double() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-6)
    return relative.nan_to_num(nan=math.inf).max().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="budget, compiling included")
    parser.add_argument("--ceiling", type=float, required=True, help="read ceiling of this GPU, bytes per second")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=16)
    options = parser.parse_args()
    start, device, todo = time.perf_counter(), device_of(torch.device(DEVICE, 0)), shapes()
    compile_all(todo, device, options.processes)
    result = {"ceiling": options.ceiling, "failures": check_outputs(todo, device), "rows": []}
    print(
        f"{len(result['failures'])} outputs differ from the reference", *result["failures"][:20], sep="\n", flush=True
    )
    bench, written = Bench(options.ceiling), 0.0
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
    """A row in a line: the law, then today's choice and the fastest launch over it."""
    times, law = row["times"], row["law_us"]
    best = min(times, key=times.get)
    ratios = f"chosen {times.get(row['chosen'], math.nan) / law:.3f}, best {times[best] / law:.3f}"
    return f"{'x'.join(map(str, row['shape']))}: law {law:.1f}, {ratios} ({best})"


if __name__ == "__main__":
    main()
