"""A run of the kernel bench: caches wiped, ceiling, builds, the grid, the original plan's tolerance; one result."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench import provenance
from bench.kernels import grid
from bench.kernels.grid import Shape
from bench.kernels.peers import Kernel
from bench.kernels.result import Build, KernelRow, KernelsResult, Tolerance
from bench.record import Provenance
from flashinfer_patches import engine, jit_cache, package
from vllm_launch import machine
from vllm_launch.errors import Problem

MESSAGE_CHARACTERS = 300
Broken = dict[tuple[str, str], str]  # kernel and format -> why it is not even tried


@dataclass(frozen=True)
class Request:
    """What to measure, where to write, and how to tell of it: `say` a passing state, `done` a finished step."""

    kernels: list[Kernel]
    shapes: list[Shape]
    folder: Path
    command: list[str]
    say: Callable[[str], None]
    done: Callable[[str], None]


def check(kernels: list[Kernel]) -> None:
    """Raise Problem("software") where there is no GPU, no FlashInfer, or no patched one and a kernel needs it."""
    try:
        machine.detect("gpu")
    except LookupError as error:
        raise Problem("software", f"no GPU to time kernels on: {error}", "run this on a machine with one") from error
    installed = package.installed()
    if installed is None:
        raise Problem(
            "software",
            "no FlashInfer in this environment",
            "set up for a GPU: make setup DEVICE=gpu; or name a folder that holds one: PYTHONPATH=DIR fp8-sinks ...",
        )
    found = engine.status()
    needy = [str(kernel) for kernel in kernels if kernel.patched]
    if needy and found.state != "applied":
        others = " ".join(f"--kernel {name}" for name in dict.fromkeys(k.name for k in kernels if not k.patched))
        without = f"; without them: {others}" if others else ""
        raise Problem(
            "software",
            f"FlashInfer {found.version} in {provenance.redact(str(found.target))} is {found.state};"
            f" {', '.join(needy)}: expected the patch series applied",
            f"run: fp8-sinks patch apply{without}",
        )
    import torch

    if not torch.cuda.is_available():
        raise Problem("software", f"torch {torch.__version__} sees no GPU", "install torch for CUDA: make setup")


def execute(request: Request) -> KernelsResult:
    """Measure what was asked; a kernel that fails keeps its rows, with the error. Raises what check() does."""
    check(request.kernels)
    source = _provenance(request.command)
    folder, wiped = _empty_cache(request.folder / "cache")
    try:
        import flashinfer  # noqa: F401 - now: its seconds are no kernel's
    except ImportError as error:
        what = f"FlashInfer cannot be imported: {_message(error)}"
        raise Problem("software", what, "install what it depends on: make setup DEVICE=gpu") from error
    request.say("read ceiling")
    from bench.kernels.ceiling import read_ceiling  # imports torch and Triton, which read the environment set above

    ceiling = read_ceiling()
    request.done(f"{source.machine.name}, read ceiling {ceiling / 1e12:.3f} TB/s")
    builds = [_build(request, kernel, folder) for kernel in request.kernels]
    broken = {(one.kernel, one.kv_format): f"not built: {one.error}" for one in builds if one.error}
    return KernelsResult(
        id=request.folder.name,
        provenance=source,
        geometry=grid.GEOMETRY,
        read_ceiling_bytes_per_s=ceiling,
        cache_wiped_bytes=wiped,
        builds=builds,
        rows=[row for shape in request.shapes for row in _rows(request, shape, broken, ceiling)],
        tolerance=[one for shape in grid.PLAN_SHAPES for one in _tolerances(request, shape, broken)],
    )


def _provenance(command: list[str]) -> Provenance:
    """The run's provenance; FlashInfer's release as its files tell, for a folder on PYTHONPATH has no metadata."""
    import torch

    source = provenance.collect(machine.detect("gpu"), command)
    versions = {"flashinfer-python": package.version(package.installed()), "cuda": torch.version.cuda}
    return source.model_copy(update={"versions": source.versions | versions})


def _empty_cache(root: Path) -> tuple[Path, int]:
    """This run's own kernel cache, empty, and where every later import looks for it; and the bytes wiped."""
    folder = jit_cache.workspace(root / "flashinfer")
    wiped = sum(jit_cache.wipe(one.path) for one in jit_cache.caches(root / "flashinfer"))
    jit_cache.make(folder)  # before FlashInfer, which writes into it as soon as it is imported
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(root / "triton")
    return folder, wiped


def _build(request: Request, kernel: Kernel, folder: Path) -> Build:
    """Compile, load and run a kernel once."""
    import torch

    from bench.kernels import inputs

    tiny = inputs.build(Shape(1, grid.GEOMETRY.page_size), layers=1)

    def first_call() -> None:
        for setting in kernel.settings:
            for call in kernel.calls(tiny, setting):
                call()
        torch.cuda.synchronize()

    request.say(f"building {kernel}")
    names = {"kernel": kernel.name, "kv_format": kernel.kv_format}
    began = time.perf_counter()
    try:
        jit_cache.built_once(folder, f"{kernel.name}-{kernel.kv_format}", first_call)
    except Exception as error:
        request.done(f"building {kernel} FAILED: {_message(error)}")
        return Build(**names, seconds=None, error=_message(error))
    seconds = time.perf_counter() - began
    request.done(f"built {kernel} in {seconds:.1f} s")
    return Build(**names, seconds=seconds, error=None)


def _rows(request: Request, shape: Shape, broken: Broken, ceiling: float) -> list[KernelRow]:
    """Every kernel at one shape, on the same inputs."""
    from bench.kernels import exact, inputs

    request.say(f"{shape}: inputs")
    pairs = {(kernel.kv_format, kernel.sinks) for kernel in request.kernels if _key(kernel) not in broken}
    made, expected, unmade = None, {}, None
    try:
        if pairs:
            made = inputs.build(shape, grid.layers(shape))
            expected = {pair: exact.expected(made, pair[0], sinks=pair[1]) for pair in pairs}
    except Exception as error:  # too large for this GPU's memory
        unmade = f"no inputs: {_message(error)}"
    rows = []
    for kernel in request.kernels:
        request.say(f"{shape}: {kernel}")
        reason = broken.get(_key(kernel)) or unmade
        figures, error = (
            (None, reason)
            if reason
            else _tried(
                partial(_figures, kernel, made, expected.get((kernel.kv_format, kernel.sinks))),
                f"{kernel} at {shape}",
                request.kernels,
                broken,
            )
        )
        nothing = {"time_us": None, "samples_us": [], "rel_l2": None, "setting": None}
        rows.append(
            KernelRow(
                **_names(kernel, shape),
                kv_bytes=grid.kv_bytes(shape, kernel.kv_format),
                error=error,
                **(figures or nothing),
            )
        )
        request.done(_line(rows[-1], ceiling))
    return rows


def _figures(kernel: Kernel, made, expected) -> dict:
    """The fastest setting's samples, and the error of what its timed calls wrote."""
    from bench.kernels import exact, inputs, timing

    samples, errors = {}, {}
    for setting in kernel.settings:
        inputs.poison(made)
        samples[setting] = timing.graph_us(kernel.calls(made, setting))
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


def _tolerances(request: Request, shape: Shape, broken: Broken) -> list[Tolerance]:
    """Each kernel's output at one of the original plan's shapes, against its tolerance."""
    from bench.kernels import inputs

    kernels = [kernel for kernel in request.kernels if _key(kernel) not in broken]
    if not kernels:
        return []
    made, found = inputs.build(shape, layers=1), []
    for kernel in kernels:
        request.say(f"{shape}: {kernel} against the original plan's tolerance")
        figures, error = _tried(partial(_distances, kernel, made), f"{kernel} at {shape}", kernels, broken)
        nothing = dict.fromkeys(("missed_stored", "missed_bf16", "rel_l2_stored", "rel_l2_bf16"))
        found.append(
            Tolerance(**_names(kernel, shape), rtol=grid.RTOL, atol=grid.ATOL, error=error, **(figures or nothing))
        )
    return found


def _distances(kernel: Kernel, made) -> dict:
    """How far one call's output is from attention over the cache as stored, and over the BF16 values."""
    from bench.kernels import exact, inputs

    inputs.poison(made)
    for call in kernel.calls(made, kernel.settings[0]):
        call()
    out, figures = exact.outputs(made), {}
    for name, kv_format in (("stored", kernel.kv_format), ("bf16", "bf16")):
        expected = exact.expected(made, kv_format, sinks=kernel.sinks)
        figures[f"missed_{name}"] = exact.missed(out, expected, grid.RTOL, grid.ATOL)
        figures[f"rel_l2_{name}"] = exact.rel_l2(out, expected)
    return figures


def _tried(
    measure: Callable[[], dict], what: str, kernels: list[Kernel], broken: Broken
) -> tuple[dict | None, str | None]:
    """What `measure` returns, or why it failed; all `kernels` are broken then if the GPU is no longer usable."""
    import torch

    try:
        return measure(), None
    except Exception as error:
        try:
            torch.cuda.synchronize()
        except Exception:
            reason = f"not run: {what} left the GPU unusable for this process"
            broken |= {_key(kernel): reason for kernel in kernels if _key(kernel) not in broken}
        return None, _message(error)


def _key(kernel: Kernel) -> tuple[str, str]:
    return kernel.name, kernel.kv_format


def _names(kernel: Kernel, shape: Shape) -> dict:
    return {"kernel": kernel.name, "kv_format": kernel.kv_format, "batch": shape.batch, "context": shape.context}


def _message(error: Exception) -> str:
    """An exception on one line, without this machine's folders."""
    text = " ".join(provenance.redact(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= MESSAGE_CHARACTERS else f"{text[:MESSAGE_CHARACTERS]}..."


def _line(row: KernelRow, ceiling: float) -> str:
    name = f"{row.batch}x{row.context} {row.kernel} {row.kv_format}"
    if row.error:
        return f"{name}: FAILED: {row.error}"
    share = row.kv_bytes / row.time_us * 1e6 / ceiling
    return f"{name}: {row.time_us:.2f} us, {share:.0%} of the read ceiling, relL2 {row.rel_l2:.1e} ({row.setting})"
