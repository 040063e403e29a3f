"""What a run of the engine bench measures: variants and cells by name, and resolved for this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from bench.engine import cells, variants
from bench.engine.cells import CELLS, JUDGED, Cell
from bench.engine.models import SHAPES
from bench.engine.result import Compilation, Routing
from bench.engine.variants import BASE, Variant
from flashinfer_patches.strict import Count, Strict
from vllm_launch.terminal import Step


class EngineRequest(Strict):
    """Variants and cells by name: no variant is all that the release has, no cell is CELLS. Saved in the run's folder.

    starts: of each engine; those after the first measure the cells of JUDGED alone, or all of `cells` where these were
    named. tensor_parallel: GPUs of an engine, or ranks on a CPU. prefill: prompts are prefilled instead of assumed in
    the cache. profile: list the kernels of a step.
    """

    kind: Literal["engine"]
    variants: list[str]
    cells: list[str]
    shape: str
    compilation: Compilation
    routing: Routing
    starts: Count
    steps: Count
    tensor_parallel: Count = 1
    prefill: bool = False
    profile: bool = False

    @model_validator(mode="after")
    def _names_exist(self):
        """Raise for unknown names, such as those saved by another version."""
        if unknown := sorted({*self.variants} - {*variants.NAMES} | {self.shape} - {*SHAPES}):
            raise ValueError(f"unknown: {', '.join(unknown)}")
        for name in self.cells:
            cells.parse(name)
        return self


@dataclass(frozen=True)
class EngineRun:
    """A run, resolved. seconds: the time of this execution. status, print_line, show_steps: as in terminal.Display."""

    folder: Path
    request: EngineRequest
    device: str
    vllm: str
    variants: list[Variant]
    cells: list[Cell]
    seconds: float
    status: Callable[[str], None] = print
    print_line: Callable[[str], None] = print
    show_steps: Callable[[list[Step]], None] = print

    def cells_of_start(self, start: int) -> list[Cell]:
        if start == 1 or self.request.cells:
            return self.cells
        return [cell for cell in self.cells if cell in JUDGED]

    def engines(self) -> list[tuple[Variant, int]]:
        """Every start of every variant in the order of execution, stock BF16 first in each round."""
        return [(variant, start) for start in range(1, self.request.starts + 1) for variant in self.variants]


def resolve(folder: Path, request: EngineRequest, device: str, vllm: str, seconds: float) -> EngineRun:
    """Look up the variants and cells of a request; writes nothing. Stock BF16 is always measured."""
    names = {BASE.name, *request.variants} if request.variants else {*variants.NAMES}
    chosen = [variant for variant in variants.VARIANTS if variant.name in names and variants.has(variant, vllm)]
    return EngineRun(folder, request, device, vllm, chosen, [*map(cells.parse, request.cells)] or CELLS, seconds)
