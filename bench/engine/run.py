"""A run of the engine bench: one piece, each start of an engine in a process of its own; one result.

Its steps are files in the run's folder, one a cell, which a resumed run loads.
"""

import json
import time
from pathlib import Path

from bench.engine import engines, models, ratios
from bench.engine.cells import Cell, parse
from bench.engine.engines import ProcessFailed
from bench.engine.environment import check_unchanged, collect
from bench.engine.request import EngineRun
from bench.engine.result import EngineResult, EngineRow, LeftOut, Piece, StepProfile
from bench.engine.task import PROFILE, READY, cell_path, missing, row
from bench.engine.variants import BASE, Variant, named
from bench.record import files
from bench.record.steps import load, save, step
from flashinfer_patches.files import writing
from vllm_launch.terminal import Step

# Of an engine's start, at least: with fewer seconds left none starts.
LEAST_START_S = {"cpu": 10.0, "gpu": 40.0}


def execute(run: EngineRun, command: list[str]) -> EngineResult:
    """Measure until all is measured or run.seconds have passed, and write run.folder/result.json.

    The folder is locked by this process (run_folder.opened), and problems() has none. A cell that fails is a row with
    its reason; cells that had no time are left out of the result, and measured by the next execution.
    """
    end, folder = time.time() + run.seconds, run.folder / "steps"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    run.show_steps(
        [Step(f"{variant.name} {start}: {cell}", f"cell {cell}", path) for variant, start, cell, path in _paths(run)]
    )
    resumed = (folder / "piece.json").exists()
    piece = step(folder / "piece.json", Piece, lambda: _piece(run, command))
    if resumed:
        check_unchanged(piece, collect(run, command))
    models.write_folder(run.request.shape, run.folder / "model")
    if any(variant.kv_format == "int8-static" for variant in run.variants):
        models.write_scales(run.request.shape, run.folder / models.SCALES)
    for variant, start in run.engines():
        _measure(run, variant, start, end)
    rows = [load(path, EngineRow) for *_, path in _paths(run) if path.exists()]
    left_out = [
        LeftOut(variant=variant.name, start=start, cell=str(cell))
        for variant, start, cell, path in _paths(run)
        if not path.exists()
    ]
    result = EngineResult(
        id=run.folder.name,
        provenance=piece.provenance,
        shape=run.request.shape,
        compilation=run.request.compilation,
        routing=run.request.routing,
        pieces=[piece],
        rows=rows,
        left_out=left_out,
        profiles=[] if left_out or not run.request.profile else _profiles(run, rows, end),
    )
    with writing(run.folder):
        files.write(result, run.folder / "result.json")
    return result


def _paths(run: EngineRun) -> list[tuple[Variant, int, Cell, Path]]:
    """Every cell of every start, and the file of its row."""
    return [
        (variant, start, cell, cell_path(_folder(run, variant, start), cell))
        for variant, start in run.engines()
        for cell in run.cells_of_start(start)
    ]


def _folder(run: EngineRun, variant: Variant, start: int | str) -> Path:
    return run.folder / "steps" / f"{variant.name}-{start}"


def _piece(run: EngineRun, command: list[str]) -> Piece:
    """Record where the piece is measured; on a GPU with its read ceiling."""
    piece, ceiling = collect(run, command), None
    if run.device == "gpu":
        path = run.folder / "steps" / "ceiling.json"
        try:
            engines.read_ceiling(run, path)
            ceiling = json.loads(path.read_bytes())
        except (ProcessFailed, OSError) as error:
            run.print_line(f"no read ceiling, so no predictions: {error}")
    return piece.model_copy(update={"read_ceiling_bytes_per_s": ceiling})


def _measure(run: EngineRun, variant: Variant, start: int, end: float) -> None:
    """Measure the cells of a start that have no row yet; a process that dies costs one cell, or all if none started."""
    folder, cells = _folder(run, variant, start), run.cells_of_start(start)
    while (remaining := missing(folder, cells)) and time.time() + LEAST_START_S[run.device] < end:
        try:
            engines.measure(run, variant, start, remaining, folder, end)
            if time.time() < end - engines.CELL_S and len(missing(folder, cells)) == len(remaining):
                raise ProcessFailed("the engine's process ended without a row")
        except ProcessFailed as error:
            unmeasured = missing(folder, cells)
            failed = unmeasured[:1] if (folder / READY).exists() else unmeasured
            for cell in failed:
                save(
                    cell_path(folder, cell), EngineRow, row(engines.labels(run, variant, start), cell, error=str(error))
                )
            if failed:
                run.print_line(f"{variant.name}, start {start}: {', '.join(map(str, failed))} failed: {error}")


def _profiles(run: EngineRun, rows: list[EngineRow], end: float) -> list[StepProfile]:
    """Kernels of a step of stock BF16, and of our backend or else another variant, where that one gains least.

    Empty if there is no time.
    """
    ours = [row for row in rows if row.variant == BASE.name or named(row.variant).decoder != "stock"]
    entry = ratios.worst(ours) or ratios.worst(rows)
    if entry is None:
        return []
    tables = {}
    for variant in (BASE, named(entry.variant)):
        folder = _folder(run, variant, f"profile-{entry.cell}")
        try:
            if not (folder / PROFILE).exists() and time.time() + LEAST_START_S[run.device] < end:
                engines.measure(run, variant, 1, [parse(entry.cell)], folder, end, profile=True)
            if not (folder / PROFILE).exists():
                raise ProcessFailed("no time left; --resume the run")
            tables |= load(folder / PROFILE, StepProfile).kernels
        except ProcessFailed as error:
            run.print_line(f"{variant.name}: no profile of {entry.cell}: {error}")
    return [StepProfile(cell=entry.cell, kernels=tables)] if tables else []
