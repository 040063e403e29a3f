"""First calls of the kernels with an empty cache: compile, load, run once."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.kernels import grid
from bench.kernels.measure import BuildKey, key, message
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRun
from bench.kernels.result import Build
from flashinfer_patches import jit_cache
from lowp.paged.shapes import PAGE_SIZE, Shape
from vllm_launch.plan import KERNEL_CACHE

CORES_PER_BUILD = 3  # one of FlashInfer's modules has ten files to compile


def build_all(run: KernelsRun) -> list[Build]:
    """Build the run's kernels; FlashInfer's, which compile for long, several at once."""
    flashinfer = [kernel for kernel in run.kernels if kernel.source == "flashinfer"]
    builds: dict[DecodeKernel, list[Build]] = {}

    def build_flashinfer() -> None:
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // CORES_PER_BUILD)) as pool:
            run.status(f"building {', '.join(map(str, flashinfer))}")
            built = pool.map(lambda kernel: _build(run, kernel), flashinfer)
            builds.update(zip(flashinfer, built, strict=True))

    if flashinfer:
        jit_cache.built_once(Path(os.environ[KERNEL_CACHE]), "kernels", build_flashinfer)
    for kernel in run.kernels:
        if kernel.source != "flashinfer":
            run.status(f"building {kernel}")
            builds[kernel] = _build(run, kernel)
    return [build for kernel in run.kernels for build in builds[kernel]]


def _build(run: KernelsRun, kernel: DecodeKernel) -> list[Build]:
    """Build a kernel in each variant that the run's shapes need."""
    keys = dict.fromkeys(key(kernel, point.shape) for point in run.points if not kernel.skip_reason(point))
    builds = []
    for variant in keys:
        seconds, error = _first_call(kernel, variant)
        builds.append(Build(**variant._asdict(), seconds=seconds, error=error))
        options = f"{', windowed' if variant.windowed else ''}, {variant.query_format} query"
        name = f"{kernel}, head_dim {variant.head_dim}{options}"
        run.print_line(f"building {name} FAILED: {error}" if error else f"built {name} in {seconds:.1f} s")
    return builds


def _first_call(kernel: DecodeKernel, variant: BuildKey) -> tuple[float | None, str | None]:
    """Seconds of the smallest call of all, or its error."""
    import torch

    from lowp.paged import inputs

    window_left = grid.WINDOW_LEFT if variant.windowed else -1
    shape = Shape((PAGE_SIZE,), window_left, variant.head_dim, query_format=variant.query_format)
    try:
        data = inputs.build(shape, 1, [kernel.kv_format])
        start = time.perf_counter()
        for setting in kernel.settings:
            for call in kernel.calls(data, setting):
                call()
        torch.cuda.synchronize()
        return time.perf_counter() - start, None
    except Exception as error:
        return None, message(error)
