"""The decoders' time against the read ceiling, and which one is fastest."""

from pathlib import Path
from statistics import geometric_mean
from typing import NamedTuple

from bench.certify.budget import Watch
from bench.kernels import grid, measure, peers
from bench.kernels.measure import Failures
from bench.kernels.request import KernelsRequest, KernelsRun
from bench.kernels.result import KernelRow
from flashinfer_patches import engine, jit_cache, package, sink_kernels
from flashinfer_patches.errors import Problem
from vllm_launch.certificate import Check, Timing
from vllm_launch.profile import Decoder
from vllm_launch.terminal import Display

SHAPES = ("1x32768", "8x8192", "32x8192")
KV_FORMAT = "e4m3"
KERNELS: dict[str, Decoder] = {peers.OURS: "lowp", "fa2-sinks": "flashinfer"}
MIN_FRACTION = 0.5  # of the read ceiling at the last shape: a slower decoder is not taken
MAX_REL_L2 = 4e-3  # of the timed outputs, as of a head in the tight test


class Speed(NamedTuple):
    """read_ceiling: bytes per second. timings: of the decoders without an error."""

    check: Check
    read_ceiling: float
    timings: list[Timing]


def flashinfer_obstacle() -> str | None:
    """Why the patched FA2 kernel cannot be timed now; None if it can. It is not compiled here, which takes minutes."""
    if package.installed() is None:
        return "FlashInfer is not installed"
    try:
        if engine.status().state != "applied":
            return "FlashInfer is not patched: fp8-sinks patch apply"
        folder = jit_cache.workspace()
    except Problem as problem:
        return problem.message
    modules = {name for cache in jit_cache.caches(folder.parent) if cache.path == folder for name in cache.built}
    return None if len(modules) == len(sink_kernels.GPT_OSS) else "its kernels are not compiled: fp8-sinks cache build"


def check(display: Display, watch: Watch) -> Speed:
    """Measure the read ceiling, and time the decoders on the same inputs. Raises OutOfTime."""
    display.status("read ceiling")
    obstacle = _load_flashinfer()
    from bench.kernels.ceiling import read_ceiling  # imports Triton

    ceiling = read_ceiling()
    names = [peers.OURS] if obstacle else list(KERNELS)
    kernels = [kernel for kernel in peers.KERNELS if kernel.name in names and kernel.kv_format == KV_FORMAT]
    request = KernelsRequest(kind="kernels", kernels=names, shapes=list(SHAPES))
    points = [grid.parse(shape) for shape in SHAPES]
    run = KernelsRun(Path(), request, kernels, points, display.status, display.print_line)
    failures, rows = Failures(), []
    for point in points:
        watch()
        rows += measure.rows(run, point, failures, ceiling)
    _free_memory()
    timings = [_timing(row, ceiling) for row in rows if row.error is None]
    return Speed(verdict(rows, timings, ceiling, obstacle), ceiling, timings)


def _free_memory() -> None:
    """Give the inputs' memory back to the GPU, for servers."""
    import torch

    torch.cuda.empty_cache()


def _load_flashinfer() -> str | None:
    """Load FlashInfer's compiled kernels; returns why they cannot be timed."""
    obstacle = flashinfer_obstacle()
    try:
        if obstacle is None:
            sink_kernels.build()
    except Problem as problem:
        return problem.message
    return obstacle


def verdict(rows: list[KernelRow], timings: list[Timing], ceiling: float, obstacle: str | None) -> Check:
    """Judge our kernel's rows: failed if one has an error or a wrong output; being slow is no failure."""
    ours = [row for row in rows if row.kernel == peers.OURS]
    problems = [f"{row.shape}: {problem}" for row in ours if (problem := _problem(row))]
    if problems:
        detail = f"{len(problems)} of {len(ours)} shapes wrong"
        return Check(name="speed", verdict="failed", detail=detail, problems=problems)
    last = next(timing for timing in timings if timing.decoder == "lowp" and timing.shape == SHAPES[-1])
    detail = f"lowp reads {last.fraction:.0%} of {ceiling / 1e12:.2f} TB/s at {last.shape}"
    comparison = f"FlashInfer not timed: {obstacle}" if obstacle else _comparison(timings)
    return Check(name="speed", verdict="passed", detail=f"{detail}; {comparison}")


def fastest(timings: list[Timing]) -> Decoder:
    """The decoder with the least geometric mean of its times, of those that are right and fast; stock if none is."""
    means = {}
    for decoder in KERNELS.values():
        by_shape = {timing.shape: timing for timing in timings if timing.decoder == decoder}
        right = all(timing.rel_l2 <= MAX_REL_L2 for timing in by_shape.values())
        if right and by_shape.keys() == {*SHAPES} and by_shape[SHAPES[-1]].fraction >= MIN_FRACTION:
            means[decoder] = geometric_mean(timing.time_us for timing in by_shape.values())
    return min(means, key=means.get) if means else "stock"


def _problem(row: KernelRow) -> str | None:
    """The row's error, or that its output is wrong."""
    if row.error is None and row.rel_l2 > MAX_REL_L2:
        return f"relL2 {row.rel_l2:.1e} is over {MAX_REL_L2:.0e}"
    return row.error


def _timing(row: KernelRow, ceiling: float) -> Timing:
    return Timing(
        decoder=KERNELS[row.kernel],
        shape=str(row.shape),
        time_us=row.time_us,
        fraction=row.kv_bytes / row.time_us * 1e6 / ceiling,
        rel_l2=row.rel_l2,
    )


def _comparison(timings: list[Timing]) -> str:
    """FlashInfer's time over ours."""
    ours, theirs = (
        {timing.shape: timing.time_us for timing in timings if timing.decoder == decoder}
        for decoder in ("lowp", "flashinfer")
    )
    ratios = [time_us / ours[shape] for shape, time_us in theirs.items()]
    if not ratios:
        return "FlashInfer failed"
    return f"FlashInfer takes {min(ratios):.2f} to {max(ratios):.2f} times as long"
