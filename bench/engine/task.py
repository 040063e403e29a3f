"""What the parent asks of an engine's process, and which files the process answers with."""

from pathlib import Path
from typing import Any

from bench.engine.cells import Cell, parse
from bench.engine.result import EngineRow
from bench.engine.variants import Variant, named
from flashinfer_patches.strict import Count, Strict

READY, PROFILE = "ready.json", "profile.json"


class Task(Strict):
    """One start of an engine. labels: the fields of EngineRow that are known before it. folder: for the files.

    arguments: of vllm.LLM. spread_routing: see weights.py. prefill: whether prompts are prefilled instead of assumed in
    the cache. profile: whether kernels are listed instead of steps timed. until: Unix time after which no cell starts.
    """

    labels: dict[str, Any]
    arguments: dict[str, Any]
    folder: str
    cells: list[str]
    steps: Count
    vocabulary: Count
    spread_routing: bool
    prefill: bool
    profile: bool
    until: float

    @property
    def variant(self) -> Variant:
        return named(self.labels["variant"])


def row(labels: dict[str, Any], cell: Cell, **fields) -> EngineRow:
    """A row of a cell; without other fields than `error`, of one that failed."""
    shape = {"cell": str(cell), "batch": cell.batch, "context": cell.context, "lengths": cell.lengths}
    return EngineRow(**{**labels, **shape, **fields})


def cell_path(folder: Path, cell: Cell | str) -> Path:
    return folder / f"{cell}.json"


def missing(folder: Path, cells: list[Cell]) -> list[Cell]:
    """The cells without a row."""
    return [cell for cell in cells if not cell_path(folder, cell).exists()]


def cells_of(task: Task) -> list[Cell]:
    return [parse(name) for name in task.cells]
