"""A run: read ceiling, then each point as a step that a resumed run loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from bench.kernels.environment import check_same_ceiling, check_unchanged
from bench.record.files import write
from bench.record.run_folder import check
from bench.record.steps import step
from bench.static_cache.result import StaticCacheResult, StaticCacheRow
from bench.static_cache.shapes import POINTS, Point
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Strict
from vllm_launch import machine, provenance
from vllm_launch.provenance import Provenance
from vllm_launch.terminal import Display, Step


class StaticCacheRequest(Strict):
    """All points are measured."""

    kind: Literal["static-cache"] = "static-cache"


class Preparation(Strict):
    """The first step, before points are measured."""

    provenance: Provenance
    read_ceiling_bytes_per_s: float


def problems(folder: Path) -> list[Problem]:
    """List what keeps a run from starting or resuming. Raises Problem for its folder."""
    check(folder, StaticCacheRequest())
    remedy = "run this on a machine with an NVIDIA GPU, torch and triton"
    try:
        machine.detect("gpu")
        import torch
        import triton  # noqa: F401
    except (LookupError, ImportError) as error:
        return [Problem("software", f"nothing to measure with: {error}", remedy)]
    if torch.cuda.is_available():
        return []
    return [Problem("software", f"torch {torch.__version__} sees no GPU", remedy)]


def execute(folder: Path, display: Display, command: list[str]) -> StaticCacheResult:
    """Measure every point and write folder/result.json."""
    steps = folder / "steps"
    with writing(folder):
        steps.mkdir(exist_ok=True)
    paths = {point: steps / f"{point}.json" for point in POINTS}
    preparing = Step("preparation", "preparation", steps / "preparation.json")
    display.show_steps([preparing, *(Step(str(point), "point", path) for point, path in paths.items())])
    display.status("read ceiling")
    resumed, source, ceiling = preparing.path.exists(), _provenance(command), read_ceiling()
    preparation = step(
        preparing.path, Preparation, lambda: Preparation(provenance=source, read_ceiling_bytes_per_s=ceiling)
    )
    if resumed:
        check_unchanged(preparation.provenance, source)
        check_same_ceiling(preparation.read_ceiling_bytes_per_s, ceiling)
    rows = []
    for point, path in paths.items():
        display.status(str(point))
        rows += step(
            path,
            list[StaticCacheRow],
            lambda point=point: measure_rows(point, preparation.read_ceiling_bytes_per_s, display.print_line),
        )
    result = StaticCacheResult(
        id=folder.name,
        provenance=preparation.provenance,
        read_ceiling_bytes_per_s=preparation.read_ceiling_bytes_per_s,
        rows=rows,
    )
    with writing(folder):
        write(result, folder / "result.json")
    return result


def read_ceiling() -> float:
    from bench.kernels import ceiling  # imports triton

    return ceiling.read_ceiling()


def measure_rows(point: Point, ceiling: float, report: Callable[[str], None]) -> list[StaticCacheRow]:
    from bench.static_cache import measure  # imports torch

    return measure.rows(point, ceiling, report)


def _provenance(command: list[str]) -> Provenance:
    import torch

    collected = provenance.collect(machine.detect("gpu"), command)
    return collected.model_copy(update={"versions": collected.versions | {"cuda": torch.version.cuda or "none"}})
