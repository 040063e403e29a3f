"""Kernels at one shape: the fastest setting's time and the error of the timed calls, or why a kernel failed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import NamedTuple

from bench.kernels import grid
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.kernels.result import Build, KernelRow
from lowp.paged.shapes import Shape
from vllm_launch import redaction

MESSAGE_CHARACTERS = 300


class BuildKey(NamedTuple):
    """What tells one build of the bench from another."""

    kernel: str
    kv_format: str
    head_dim: int
    windowed: bool


@dataclass
class Failures:
    """Why a kernel is not tried: builds that failed, or a GPU that this process can no longer use."""

    builds: dict[BuildKey, str] = field(default_factory=dict)
    gpu: str | None = None

    def reason(self, kernel: DecodeKernel, shape: Shape) -> str | None:
        return self.builds.get(key(kernel, shape)) or self.gpu


def key(kernel: DecodeKernel, shape: Shape) -> BuildKey:
    """The build of a kernel that a shape needs."""
    return BuildKey(kernel.name, kernel.kv_format, shape.head_dim, shape.window_left >= 0)


def key_of(build: Build) -> BuildKey:
    """The key of a recorded build."""
    return BuildKey(build.kernel, build.kv_format, build.head_dim, build.windowed)


def rows(run: KernelsRun, shape: Shape, failures: Failures, ceiling: float) -> list[KernelRow]:
    """Measure every kernel that has the shape, all on the same inputs."""
    from bench.kernels import exact
    from lowp.paged import inputs

    run.status(f"{shape}: inputs")
    kernels = [kernel for kernel in run.kernels if not kernel.skip_reason(shape)]
    variants = {(kernel.kv_format, kernel.sinks) for kernel in kernels if not failures.reason(kernel, shape)}
    data, expected, no_inputs = None, {}, None
    try:
        if variants:
            data = inputs.build(shape, grid.layers(shape))
            expected = {variant: exact.expected(data, variant[0], sinks=variant[1]) for variant in variants}
    except Exception as error:  # too large for this GPU's memory
        no_inputs = f"no inputs: {message(error)}"
    measured = []
    for kernel in kernels:
        run.status(f"{shape}: {kernel}")
        figures, error = None, failures.reason(kernel, shape) or no_inputs
        if error is None:
            measurement = partial(_figures, kernel, data, expected[kernel.kv_format, kernel.sinks])
            figures, error = _attempt(measurement, f"{kernel} at {shape}", failures)
        measured.append(_row(kernel, shape, figures, error))
        run.print_line(_line(measured[-1], ceiling))
    return measured


def message(error: Exception) -> str:
    """An exception on one line, without this machine's folders."""
    text = " ".join(redaction.redact(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."


def _figures(kernel: DecodeKernel, data, expected) -> dict:
    """The fastest setting's samples, and the error of the output of its timed calls."""
    from bench.kernels import exact, timing
    from lowp.paged import inputs

    samples, errors = {}, {}
    for setting in kernel.settings:
        samples[setting] = timing.graph_us(kernel.calls(data, setting), partial(inputs.poison, data))
        errors[setting] = exact.rel_l2(exact.outputs(data), expected)
        if not math.isfinite(errors[setting]):
            raise ArithmeticError(f"with {setting} the output has NaN or infinity, or was not written")
    best = timing.fastest(samples)
    return {
        "time_us": median(samples[best]),
        "samples_us": samples[best],
        "rel_l2": errors[best],
        "setting": best,
    }


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


def _row(kernel: DecodeKernel, shape: Shape, figures: dict | None, error: str | None) -> KernelRow:
    no_figures = {"time_us": None, "samples_us": [], "rel_l2": None, "setting": None}
    return KernelRow(
        kernel=kernel.name,
        kv_format=kernel.kv_format,
        **KernelRow.shape_fields(shape),
        kv_bytes=grid.kv_bytes(shape, kernel.kv_format),
        error=error,
        **(figures or no_figures),
    )


def _line(row: KernelRow, ceiling: float) -> str:
    name = f"{row.shape} {row.kernel} {row.kv_format}"
    if row.error:
        return f"{name}: FAILED: {row.error}"
    fraction = row.kv_bytes / row.time_us * 1e6 / ceiling
    return f"{name}: {row.time_us:.2f} us, {fraction:.0%} of the read ceiling, relL2 {row.rel_l2:.1e} ({row.setting})"
