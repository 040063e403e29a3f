"""A run of the kernel bench: caches wiped, ceiling, builds, the grid, the original plan's tolerance; one result.

Its steps are files in the run's folder, written as they are done; a run that is started again goes on from there.
"""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.kernels import grid, measure, vllm_peers
from bench.kernels.measure import Broken, Request, build_of, message
from bench.kernels.peers import Kernel
from bench.kernels.result import Build, KernelRow, KernelsResult, LeftOut
from bench.record import run_folder
from bench.record.steps import step
from flashinfer_patches import engine, jit_cache, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from lowp.paged.shapes import Shape
from vllm_launch import machine, provenance
from vllm_launch.plan import CACHE_VARIABLES, KERNEL_CACHE
from vllm_launch.provenance import Provenance

CEILING_SPREAD = 0.01  # of one GPU from run to run, with room
CORES_A_BUILD = 3  # one of FlashInfer's modules is ten files to compile


class Begun(Strict):
    """What a run does before it measures; see KernelsResult."""

    provenance: Provenance
    read_ceiling_bytes_per_s: float
    cache_wiped_bytes: int
    builds: list[Build]
    left_out: list[LeftOut]


def check(kernels: list[Kernel], named: bool) -> None:
    """Raise Problem("software") where there is no GPU, or not what a kernel needs: FlashInfer, patched, or vLLM.

    vLLM must be there only where its kernels were asked for by name.
    """
    try:
        machine.detect("gpu")
    except LookupError as error:
        raise Problem("software", f"no GPU to time kernels on: {error}", "run this on a machine with one") from error
    if any(kernel.source == "flashinfer" for kernel in kernels):
        _check_flashinfer(kernels)
    wanted = [kernel.name for kernel in kernels if kernel.source == "vllm"]
    if named and wanted and (reason := vllm_peers.missing()):
        raise _no_vllm(wanted[0], reason)
    import torch

    if not torch.cuda.is_available():
        raise Problem("software", f"torch {torch.__version__} sees no GPU", "install torch for CUDA: make setup")


def execute(request: Request) -> KernelsResult:
    """Measure what was asked; a kernel that fails keeps its rows, with the error. Raises what check() does."""
    check(request.kernels, request.named)
    folder = request.folder / "steps"
    folder.mkdir(parents=True, exist_ok=True)
    resumed = (folder / "begun.json").exists()
    wiped = _caches(request.folder / "cache", keep=resumed)
    begun = step(folder / "begun.json", Begun, lambda: _begin(request, wiped))
    if resumed:
        _check_same(begun.provenance, _provenance(request))
        _check_same_ceiling(begun.read_ceiling_bytes_per_s, _ceiling(request))
    request = replace(request, kernels=_present(request.kernels, begun.left_out))
    broken = Broken({_key(one): f"not built: {one.error}" for one in begun.builds if one.error})
    rows = []
    for shape in request.shapes:
        rows += _kept(folder / f"{shape}.json", request, shape, broken, begun.read_ceiling_bytes_per_s)
    return KernelsResult(
        id=request.folder.name,
        provenance=begun.provenance,
        geometry=grid.GEOMETRY,
        read_ceiling_bytes_per_s=begun.read_ceiling_bytes_per_s,
        cache_wiped_bytes=begun.cache_wiped_bytes,
        builds=begun.builds,
        left_out=begun.left_out + _lacking(request),
        rows=rows,
        tolerance=[one for shape in grid.PLAN_SHAPES for one in measure.tolerances(request, shape, broken)],
    )


def _kept(path: Path, request: Request, shape: Shape, broken: Broken, ceiling: float) -> list[KernelRow]:
    """A shape's rows, as a step; not kept where none could be tried, for another process can."""
    if broken.gpu and not path.exists():
        return measure.rows(request, shape, broken, ceiling)
    return step(path, list[KernelRow], lambda: measure.rows(request, shape, broken, ceiling))


def _begin(request: Request, wiped: int) -> Begun:
    """Provenance, what is left out, ceiling and builds."""
    source = _provenance(request)
    if any(kernel.source == "flashinfer" for kernel in request.kernels):
        try:
            import flashinfer  # noqa: F401 - now: its seconds are no kernel's
        except ImportError as error:
            what = f"FlashInfer cannot be imported: {message(error)}"
            raise Problem("software", what, "install what it depends on: make setup DEVICE=gpu") from error
    left_out = _absent(request)
    ceiling = _ceiling(request)
    request.done(f"{source.machine.name}, read ceiling {ceiling / 1e12:.3f} TB/s")
    return Begun(
        provenance=source,
        read_ceiling_bytes_per_s=ceiling,
        cache_wiped_bytes=wiped,
        builds=_builds(request, _present(request.kernels, left_out)),
        left_out=left_out,
    )


def _ceiling(request: Request) -> float:
    request.say("read ceiling")
    from bench.kernels.ceiling import read_ceiling  # imports torch and Triton, which read the environment set before

    return read_ceiling()


def _provenance(request: Request) -> Provenance:
    """The run's provenance; FlashInfer's release as its files tell, for a folder on PYTHONPATH has no metadata."""
    import torch

    source = provenance.collect(machine.detect("gpu"), request.command)
    versions = {"cuda": torch.version.cuda or "none"}
    if installed := package.installed():
        versions["flashinfer-python"] = package.version(installed)
    return source.model_copy(update={"versions": source.versions | versions})


def _caches(root: Path, keep: bool) -> int:
    """Point every kernel cache into this run's own folder, and empty them unless `keep`; the bytes wiped."""
    run_folder.own_cache(root)
    wiped = 0
    places = {name: root / folder for name, folder in CACHE_VARIABLES.items()}
    if not keep:
        wiped += sum(jit_cache.wipe(one.path) for one in jit_cache.caches(places[KERNEL_CACHE]))
        for name, place in places.items():
            if name != KERNEL_CACHE and place.is_dir() and not place.is_symlink():
                wiped += sum(path.lstat().st_size for path in place.rglob("*") if path.is_file())
                shutil.rmtree(place)
    if package.installed():
        places[KERNEL_CACHE] = jit_cache.workspace(places[KERNEL_CACHE])
        jit_cache.make(places[KERNEL_CACHE])  # before FlashInfer, which writes into it as soon as it is imported
    os.environ.update({name: str(place) for name, place in places.items()})
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"  # stdout is for the result
    return wiped


def _absent(request: Request) -> list[LeftOut]:
    """vLLM's kernels that cannot be measured here. Raises Problem("software") for one that was asked for by name."""
    found = []
    for kernel in request.kernels:
        if kernel.source == "vllm" and (reason := vllm_peers.unusable(kernel.name)):
            reason = provenance.redact(" ".join(reason.split()))[: measure.MESSAGE_CHARACTERS]
            if request.named:
                raise _no_vllm(kernel.name, reason)
            request.done(f"{kernel} is left out: {reason}")
            found.append(LeftOut(kernel=kernel.name, kv_format=kernel.kv_format, shape=None, reason=reason))
    return found


def _present(kernels: list[Kernel], left_out: list[LeftOut]) -> list[Kernel]:
    absent = {(one.kernel, one.kv_format) for one in left_out}
    return [kernel for kernel in kernels if (kernel.name, kernel.kv_format) not in absent]


def _lacking(request: Request) -> list[LeftOut]:
    """What kernels are not measured at single shapes."""
    return [
        LeftOut(kernel=kernel.name, kv_format=kernel.kv_format, shape=str(shape), reason=reason)
        for kernel in request.kernels
        for shape in request.shapes
        if (reason := kernel.lacks(shape))
    ]


def _builds(request: Request, kernels: list[Kernel]) -> list[Build]:
    """The first calls of all kernels; FlashInfer's, which compile for long, several at once."""
    theirs = [kernel for kernel in kernels if kernel.source == "flashinfer"]
    others = [kernel for kernel in kernels if kernel.source != "flashinfer"]
    found: dict[Kernel, list[Build]] = {}

    def build_theirs() -> None:
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // CORES_A_BUILD)) as pool:
            request.say(f"building {', '.join(map(str, theirs))}")
            found.update(zip(theirs, pool.map(lambda kernel: _built(request, kernel), theirs), strict=True))

    if theirs:
        jit_cache.built_once(Path(os.environ[KERNEL_CACHE]), "kernels", build_theirs)
    for kernel in others:
        request.say(f"building {kernel}")
        found[kernel] = _built(request, kernel)
    return [one for kernel in kernels for one in found[kernel]]


def _built(request: Request, kernel: Kernel) -> list[Build]:
    """Compile, load and run a kernel once, in each of the builds that the run's shapes need."""
    found = []
    for head_dim, windowed in _variants(request.shapes, kernel):
        tiny = Shape((grid.GEOMETRY.page_size,), grid.WINDOW_LEFT if windowed else -1, head_dim)
        names = {"kernel": kernel.name, "kv_format": kernel.kv_format, "head_dim": head_dim, "windowed": windowed}
        what = f"{kernel}, head_dim {head_dim}{', windowed' if windowed else ''}"
        seconds, error = _first_call(kernel, tiny)
        found.append(Build(**names, seconds=seconds, error=error))
        request.done(f"building {what} FAILED: {error}" if error else f"built {what} in {seconds:.1f} s")
    return found


def _first_call(kernel: Kernel, tiny: Shape) -> tuple[float | None, str | None]:
    """Seconds, or the error."""
    import torch

    from lowp.paged import inputs

    try:
        made = inputs.build(tiny, layers=1)
        began = time.perf_counter()
        for setting in kernel.settings:
            for call in kernel.calls(made, setting):
                call()
        torch.cuda.synchronize()
        return time.perf_counter() - began, None
    except Exception as error:
        return None, message(error)


def _variants(shapes: list[Shape], kernel: Kernel) -> list[tuple[int, bool]]:
    """head_dim and whether there is a window, of every build; the plan's own shapes are always measured."""
    wanted = [shape for shape in [*grid.PLAN_SHAPES, *shapes] if not kernel.lacks(shape)]
    return list(dict.fromkeys(build_of(kernel, shape)[2:] for shape in wanted))


def _key(one: Build) -> tuple[str, str, int, bool]:
    return one.kernel, one.kv_format, one.head_dim, one.windowed


def _check_flashinfer(kernels: list[Kernel]) -> None:
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
        here = [one for one in kernels if not one.patched and (one.source != "vllm" or not vllm_peers.missing())]
        others = " ".join(f"--kernel {name}" for name in dict.fromkeys(one.name for one in here))
        without = f"; without them: {others}" if others else ""
        raise Problem(
            "software",
            f"FlashInfer {found.version} in {provenance.redact(str(found.target))} is {found.state};"
            f" {', '.join(needy)}: expected the patch series applied",
            f"run: fp8-sinks patch apply{without}",
        )


def _check_same(begun: Provenance, here: Provenance) -> None:
    """Times of two GPUs, or of two releases or commits, do not belong into one result, which names one."""
    was, now = _what_times_depend_on(begun), _what_times_depend_on(here)
    if changed := [name for name in was | now if was.get(name) != now.get(name)]:
        then, today = (", ".join(f"{name} {one.get(name)}" for name in changed) for one in (was, now))
        raise Problem(
            "software",
            f"this run began with {then}; here is {today}",
            "go on with what it began with, or begin a new run: another --run-dir",
        )


def _check_same_ceiling(was: float, now: float) -> None:
    """GPUs of one name differ by 3% in it, one GPU from run to run by far less."""
    if abs(now / was - 1) > CEILING_SPREAD:
        raise Problem(
            "software",
            f"this run began on a GPU that reads {was / 1e12:.3f} TB/s; this one reads {now / 1e12:.3f} TB/s",
            "go on with the GPU that it began with, or begin a new run: another --run-dir",
        )


def _what_times_depend_on(source: Provenance) -> dict[str, str | None]:
    known = {"GPU": source.machine.name, "driver": source.machine.driver, "patch set": source.patch}
    return known | {"commit": source.git_commit} | source.versions


def _no_vllm(name: str, reason: str) -> Problem:
    return Problem(
        "software",
        f"{name} cannot be measured: {reason}",
        "set up vLLM for a GPU: make setup DEVICE=gpu; or leave it out: name the other kernels with --kernel",
    )
