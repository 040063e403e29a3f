"""Kernels at one shape: the fastest setting's time and the error of what was timed; a kernel that fails says why."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from bench.kernels import grid
from bench.kernels.peers import Kernel
from bench.kernels.result import KernelRow, Tolerance
from lowp.paged.shapes import Shape
from vllm_launch import provenance

MESSAGE_CHARACTERS = 300
Build = tuple[str, str, int, bool]  # a kernel's name and format, the head_dim, and whether it has a sliding window


@dataclass(frozen=True)
class Request:
    """What to measure, where to write, and how to tell of it: `say` a passing state, `done` a finished step.

    named: whether the kernels were asked for by name, so that one that is missing is an error.
    """

    kernels: list[Kernel]
    shapes: list[Shape]
    folder: Path
    command: list[str]
    say: Callable[[str], None]
    done: Callable[[str], None]
    named: bool = False


@dataclass
class Broken:
    """Why what is not even tried would fail: builds that failed, and a GPU that this process can no longer use."""

    builds: dict[Build, str] = field(default_factory=dict)
    gpu: str | None = None

    def reason(self, kernel: Kernel, shape: Shape) -> str | None:
        return self.builds.get(build_of(kernel, shape)) or self.gpu


def build_of(kernel: Kernel, shape: Shape) -> Build:
    """Which build of a kernel a shape needs."""
    return kernel.name, kernel.kv_format, shape.head_dim, shape.window_left >= 0


def rows(request: Request, shape: Shape, broken: Broken, ceiling: float) -> list[KernelRow]:
    """Every kernel that is measured at a shape, on the same inputs."""
    from bench.kernels import exact
    from lowp.paged import inputs

    request.say(f"{shape}: inputs")
    kernels = [kernel for kernel in request.kernels if not kernel.lacks(shape)]
    pairs = {(kernel.kv_format, kernel.sinks) for kernel in kernels if not broken.reason(kernel, shape)}
    made, expected, unmade = None, {}, None
    try:
        if pairs:
            made = inputs.build(shape, grid.layers(shape))
            expected = {pair: exact.expected(made, pair[0], sinks=pair[1]) for pair in pairs}
    except Exception as error:  # too large for this GPU's memory
        unmade = f"no inputs: {message(error)}"
    found = []
    for kernel in kernels:
        request.say(f"{shape}: {kernel}")
        figures, error = None, broken.reason(kernel, shape) or unmade
        if error is None:
            measured = partial(_figures, kernel, made, expected[kernel.kv_format, kernel.sinks])
            figures, error = _tried(measured, f"{kernel} at {shape}", broken)
        found.append(_row(kernel, shape, figures, error))
        request.done(_line(found[-1], ceiling))
    return found


def tolerances(request: Request, shape: Shape, broken: Broken) -> list[Tolerance]:
    """Each kernel's output at one of the original plan's shapes, against its tolerance."""
    from lowp.paged import inputs

    kernels = [kernel for kernel in request.kernels if not broken.reason(kernel, shape)]
    if not kernels:
        return []
    made, found = inputs.build(shape, layers=1), []
    for kernel in kernels:
        request.say(f"{shape}: {kernel} against the original plan's tolerance")
        figures, error = None, broken.gpu
        if error is None:
            figures, error = _tried(partial(_distances, kernel, made), f"{kernel} at {shape}", broken)
        nothing = dict.fromkeys(("missed_stored", "missed_bf16", "rel_l2_stored", "rel_l2_bf16"))
        found.append(
            Tolerance(
                kernel=kernel.name,
                kv_format=kernel.kv_format,
                batch=shape.batch,
                context=shape.context,
                rtol=grid.RTOL,
                atol=grid.ATOL,
                error=error,
                **(figures or nothing),
            )
        )
    return found


def message(error: Exception) -> str:
    """An exception on one line, without this machine's folders."""
    text = " ".join(provenance.redact(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."


def _figures(kernel: Kernel, made, expected) -> dict:
    """The fastest setting's samples, and the error of what its timed calls wrote."""
    from bench.kernels import exact, timing
    from lowp.paged import inputs

    samples, errors = {}, {}
    for setting in kernel.settings:
        samples[setting] = timing.graph_us(kernel.calls(made, setting), partial(inputs.poison, made))
        errors[setting] = exact.rel_l2(exact.outputs(made), expected)
        if not math.isfinite(errors[setting]):
            raise ArithmeticError(f"with {setting} the output holds NaN or infinity, or was not written")
    best = timing.fastest(samples)
    return {
        "time_us": median(samples[best]),
        "samples_us": samples[best],
        "rel_l2": errors[best],
        "setting": best,
    }


def _distances(kernel: Kernel, made) -> dict:
    """How far one call's output is from attention over the cache as stored, and over the BF16 values."""
    from bench.kernels import exact
    from lowp.paged import inputs

    inputs.poison(made)
    for call in kernel.calls(made, kernel.settings[0]):
        call()
    out, figures = exact.outputs(made), {}
    for name, kv_format in (("stored", kernel.kv_format), ("bf16", "bf16")):
        expected = exact.expected(made, kv_format, sinks=kernel.sinks)
        figures[f"missed_{name}"] = exact.missed(out, expected, grid.RTOL, grid.ATOL)
        figures[f"rel_l2_{name}"] = exact.rel_l2(out, expected)
    if not all(map(math.isfinite, figures.values())):
        raise ArithmeticError("the output holds NaN or infinity, or was not written")
    return figures


def _tried(measured: Callable[[], dict], what: str, broken: Broken) -> tuple[dict | None, str | None]:
    """What `measured` returns, or why it failed; everything is broken then if the GPU is no longer usable."""
    import torch

    try:
        return measured(), None
    except Exception as error:
        try:
            torch.cuda.synchronize()
        except Exception:
            broken.gpu = f"not run: {what} left the GPU unusable for this process"
        return None, message(error)


def _row(kernel: Kernel, shape: Shape, figures: dict | None, error: str | None) -> KernelRow:
    nothing = {"time_us": None, "samples_us": [], "rel_l2": None, "setting": None}
    return KernelRow(
        kernel=kernel.name,
        kv_format=kernel.kv_format,
        **KernelRow.place(shape),
        kv_bytes=grid.kv_bytes(shape, kernel.kv_format),
        error=error,
        **(figures or nothing),
    )


def _line(row: KernelRow, ceiling: float) -> str:
    name = f"{row.shape} {row.kernel} {row.kv_format}"
    if row.error:
        return f"{name}: FAILED: {row.error}"
    share = row.kv_bytes / row.time_us * 1e6 / ceiling
    return f"{name}: {row.time_us:.2f} us, {share:.0%} of the read ceiling, relL2 {row.rel_l2:.1e} ({row.setting})"
