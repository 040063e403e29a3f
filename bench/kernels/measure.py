"""Kernels at one point of a grid: the fastest setting's time and the error of its calls, or why a kernel failed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import NamedTuple

from bench.kernels import grid
from bench.kernels.grid import Point
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.kernels.result import Build, KernelRow
from lowp.paged.shapes import Shape
from vllm_launch import redaction

MESSAGE_CHARACTERS = 300
TIME_DIGITS = 3  # of microseconds, in compact rows


class BuildKey(NamedTuple):
    """What tells one build of the bench from another."""

    kernel: str
    kv_format: str
    head_dim: int
    windowed: bool
    query_format: str


@dataclass
class Failures:
    """What keeps kernels from running: builds that failed, or a GPU that this process can no longer use."""

    builds: dict[BuildKey, str] = field(default_factory=dict)
    gpu: str | None = None

    def reason(self, kernel: DecodeKernel, shape: Shape) -> str | None:
        return self.builds.get(key(kernel, shape)) or self.gpu


def key(kernel: DecodeKernel, shape: Shape) -> BuildKey:
    """The build of a kernel that a shape needs."""
    return BuildKey(kernel.name, kernel.kv_format, shape.head_dim, shape.window_left >= 0, shape.query_format)


def key_of(build: Build) -> BuildKey:
    """The key of a recorded build."""
    return BuildKey(build.kernel, build.kv_format, build.head_dim, build.windowed, build.query_format)


def rows(run: KernelsRun, point: Point, failures: Failures, ceiling: float) -> list[KernelRow]:
    """Measure every kernel that has the point, all on the same inputs."""
    from bench.kernels import exact

    shape = point.shape
    run.status(f"{shape}: inputs")
    kernels = [kernel for kernel in run.kernels if not kernel.skip_reason(point)]
    variants = {(kernel.kv_format, kernel.sinks) for kernel in kernels if not failures.reason(kernel, shape)}
    data, expected, no_inputs = None, {}, None
    try:
        if variants:
            data = _inputs(run, point, sorted({kv_format for kv_format, _ in variants}))
            expected = {variant: exact.expected(data, variant[0], sinks=variant[1]) for variant in variants}
    except Exception as error:  # too large for this GPU's memory
        no_inputs = f"no inputs: {message(error)}"
    measured = []
    figures_of = _figures if point.grid == "standard" else _served_figures
    for kernel in kernels:
        run.status(f"{shape}: {kernel}")
        figures, error = None, failures.reason(kernel, shape) or no_inputs
        if error is None:
            measurement = partial(figures_of, kernel, data, expected[kernel.kv_format, kernel.sinks])
            figures, error = _attempt(measurement, f"{kernel} at {shape}", failures)
        measured.append(_row(kernel, point, figures, error))
        run.print_line(_line(measured[-1], ceiling))
    return measured


def message(error: Exception) -> str:
    """An exception on one line, without this machine's folders."""
    text = " ".join(redaction.redact(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."


def _inputs(run: KernelsRun, point: Point, kv_formats: list[str]):
    from lowp.paged import inputs

    if point.grid == "standard":
        return inputs.build(point.shape, grid.layers(point.shape), kv_formats)
    caches = {name: _large_cache(run.cache_pages, name) for name in kv_formats}
    return inputs.from_cache(point.shape, grid.served_calls(point.shape), caches)


@cache
def _large_cache(pages: int, kv_format: str):
    """The cache that all served shapes take their pages from: filling it anew would take longer than the calls."""
    from lowp.paged import inputs

    return inputs.large_cache(pages, kv_format)


def _figures(kernel: DecodeKernel, data, expected) -> dict:
    """Time, samples and error of the fastest setting."""
    from bench.kernels import timing
    from lowp.paged import inputs

    samples, errors = {}, {}
    for setting in kernel.settings:
        samples[setting] = timing.graph_us(kernel.calls(data, setting), partial(inputs.poison, data))
        errors[setting] = _error(data, expected, setting)
    best = timing.fastest(samples)
    return {
        "time_us": median(samples[best]),
        "samples_us": samples[best],
        "rel_l2": errors[best],
        "setting": best,
    }


def _served_figures(kernel: DecodeKernel, data, expected) -> dict:
    """Each time of the setting that is fastest by it; rel_l2 and setting are those of time_us."""
    from bench.kernels import timing
    from lowp.paged import inputs

    times, errors = {}, {}
    for setting in kernel.settings:
        clear = partial(inputs.poison, data)
        times[setting] = timing.back_to_back_and_between_us(kernel.calls(data, setting), clear)
        errors[setting] = _error(data, expected, setting)
    best = min(times, key=lambda setting: times[setting][0])
    return {
        "time_us": round(times[best][0], TIME_DIGITS),
        "between_us": round(min(between for _, between in times.values()), TIME_DIGITS),
        "rel_l2": float(f"{errors[best]:.2e}"),
        "setting": best if len(times) > 1 else None,
    }


def _error(data, expected, setting: str) -> float:
    from bench.kernels import exact

    error = exact.rel_l2(exact.outputs(data), expected)
    if not math.isfinite(error):
        raise ArithmeticError(f"with {setting} the output has NaN or infinity, or was not written")
    return error


def _attempt(measurement: Callable[[], dict], name: str, failures: Failures) -> tuple[dict | None, str | None]:
    """The figures, or the error; it is noted in `failures` if the GPU is no longer usable."""
    import torch

    try:
        return measurement(), None
    except Exception as error:
        try:
            torch.cuda.synchronize()
        except Exception:
            failures.gpu = f"not run: {name} left the GPU unusable for this process"
        return None, message(error)


def _row(kernel: DecodeKernel, point: Point, figures: dict | None, error: str | None) -> KernelRow:
    return KernelRow(
        kernel=kernel.name,
        kv_format=kernel.kv_format,
        **KernelRow.shape_fields(point.shape),
        grid=point.grid,
        kv_bytes=grid.kv_bytes(point.shape, kernel.kv_format),
        error=error,
        **(figures or {"time_us": None, "rel_l2": None}),
    )


def _line(row: KernelRow, ceiling: float) -> str:
    name = f"{row.shape} {row.kernel} {row.kv_format}"
    if row.error:
        return f"{name}: FAILED: {row.error}"
    fraction = row.kv_bytes / row.time_us * 1e6 / ceiling
    between = f", {row.between_us:.2f} us between additions" if row.between_us else ""
    setting = f" ({row.setting})" if row.setting else ""
    return f"{name}: {row.time_us:.2f} us{between}, {fraction:.0%} of the read ceiling, relL2 {row.rel_l2:.1e}{setting}"
