"""A run of the kernel bench: caches wiped, read ceiling, builds, the grids; one result.

Its steps are files in the run's folder, which a resumed run loads.
"""

import os
from dataclasses import replace
from pathlib import Path

from bench.kernels import builds, grid, measure, vllm_peers
from bench.kernels.environment import check_same_ceiling, check_unchanged, collect_provenance, no_vllm
from bench.kernels.grid import Point
from bench.kernels.measure import Failures
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.kernels.result import Build, KernelRow, KernelsResult, Skipped, write_result
from bench.record import run_folder
from bench.record.steps import step
from flashinfer_patches import jit_cache, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Strict
from vllm_launch import redaction
from vllm_launch.plan import CACHE_VARIABLES, KERNEL_CACHE
from vllm_launch.provenance import Provenance
from vllm_launch.terminal import Step


class Preparation(Strict):
    """The first step of a run, before it measures; fields as in KernelsResult."""

    provenance: Provenance
    read_ceiling_bytes_per_s: float
    cache_wiped_bytes: int
    builds: list[Build]
    skipped: list[Skipped]


def execute(run: KernelsRun, command: list[str]) -> KernelsResult:
    """Measure what was requested and write run.folder/result.json; a kernel that fails keeps its rows, with the error.

    The folder is locked by this process (run_folder.opened), and problems() has none.
    """
    folder = run.folder / "steps"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    preparing = Step("preparation", "preparation", folder / "preparation.json")
    run.show_steps([preparing, *(Step(str(point.shape), "shape", _rows_path(run, point)) for point in run.points)])
    resumed = preparing.path.exists()
    wiped = _use_own_caches(run, keep=resumed)
    preparation = step(preparing.path, Preparation, lambda: _prepare(run, command, wiped))
    ceiling = preparation.read_ceiling_bytes_per_s
    if resumed:
        check_unchanged(preparation.provenance, collect_provenance(command))
        check_same_ceiling(ceiling, _read_ceiling(run))
    run = replace(run, kernels=_without(run.kernels, preparation.skipped))
    failed_builds = [build for build in preparation.builds if build.error]
    failures = Failures({measure.key_of(build): f"not built: {build.error}" for build in failed_builds})
    rows = [row for point in run.points for row in _measure(run, point, failures, ceiling)]
    result = KernelsResult(
        id=run.folder.name,
        provenance=preparation.provenance,
        geometry=grid.GEOMETRY,
        read_ceiling_bytes_per_s=ceiling,
        part=run.request.part,
        cache_wiped_bytes=preparation.cache_wiped_bytes,
        builds=preparation.builds,
        left_out=preparation.skipped + _skipped_shapes(run),
        rows=rows,
    )
    with writing(run.folder):
        write_result(result, run.folder / "result.json")
    return result


def _measure(run: KernelsRun, point: Point, failures: Failures, ceiling: float) -> list[KernelRow]:
    """A point's rows, as a step; not saved once the GPU is unusable, for another process can measure them."""
    path = _rows_path(run, point)
    if failures.gpu and not path.exists():
        return measure.rows(run, point, failures, ceiling)
    return step(path, list[KernelRow], lambda: measure.rows(run, point, failures, ceiling))


def _rows_path(run: KernelsRun, point: Point) -> Path:
    return run.folder / "steps" / f"{point.file_name}.json"


def _prepare(run: KernelsRun, command: list[str], wiped: int) -> Preparation:
    """Collect the provenance, skip vLLM's kernels that cannot run, measure the read ceiling, build the others."""
    source = collect_provenance(command)
    if any(kernel.source == "flashinfer" for kernel in run.kernels):
        try:
            import flashinfer  # noqa: F401 - here, so that no kernel's build time includes it
        except ImportError as error:
            reason = f"FlashInfer cannot be imported: {measure.message(error)}"
            raise Problem("software", reason, "install its dependencies: make setup DEVICE=gpu") from error
    skipped = _skipped_vllm(run)
    ceiling = _read_ceiling(run)
    run.print_line(f"{source.machine.name}, read ceiling {ceiling / 1e12:.3f} TB/s")
    return Preparation(
        provenance=source,
        read_ceiling_bytes_per_s=ceiling,
        cache_wiped_bytes=wiped,
        builds=builds.build_all(replace(run, kernels=_without(run.kernels, skipped))),
        skipped=skipped,
    )


def _use_own_caches(run: KernelsRun, keep: bool) -> int:
    """Point every kernel cache into the run's folder, emptied unless `keep`; returns the bytes wiped."""
    root = run.folder / run_folder.CACHE
    caches = {name: root / folder for name, folder in CACHE_VARIABLES.items()}
    wiped = 0
    if not keep:
        # FlashInfer's by its own function, which refuses while compilers of an interrupted build still write into it.
        wiped = sum(jit_cache.wipe(cache.path) for cache in jit_cache.caches(caches[KERNEL_CACHE]))
        wiped += run_folder.wipe_cache(root).bytes
    if package.installed():
        # Made before FlashInfer is imported, which writes into it then.
        caches[KERNEL_CACHE] = jit_cache.make(jit_cache.workspace(caches[KERNEL_CACHE]))
    os.environ.update({name: str(path) for name, path in caches.items()})
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"  # stdout is for the result
    return wiped


def _read_ceiling(run: KernelsRun) -> float:
    run.status("read ceiling")
    from bench.kernels.ceiling import read_ceiling  # imports torch and Triton, which read the environment set before

    return read_ceiling()


def _skipped_vllm(run: KernelsRun) -> list[Skipped]:
    """vLLM's kernels that cannot run here. Raises Problem("software") for one that was requested by name."""
    skipped = []
    for kernel in run.kernels:
        if kernel.source == "vllm" and (reason := vllm_peers.unusable_reason(kernel.name)):
            reason = redaction.redact(" ".join(reason.split()))[: measure.MESSAGE_CHARACTERS]
            if run.kernels_named:
                raise no_vllm(kernel, reason)
            run.print_line(f"{kernel} is skipped: {reason}")
            skipped.append(Skipped(kernel=kernel.name, kv_format=kernel.kv_format, shape=None, reason=reason))
    return skipped


def _skipped_shapes(run: KernelsRun) -> list[Skipped]:
    """Kernels that are not measured at single shapes of the standard grid; the other grids have them at some alone."""
    return [
        Skipped(kernel=kernel.name, kv_format=kernel.kv_format, shape=str(point.shape), reason=reason)
        for kernel in run.kernels
        for point in run.points
        if point.grid == "standard" and (reason := kernel.skip_reason(point))
    ]


def _without(kernels: list[DecodeKernel], skipped: list[Skipped]) -> list[DecodeKernel]:
    names = {(entry.kernel, entry.kv_format) for entry in skipped}
    return [kernel for kernel in kernels if (kernel.name, kernel.kv_format) not in names]
