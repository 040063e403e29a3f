"""What a run of the kernel bench measures: kernels and shapes, by name and resolved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from bench.kernels import grid, peers
from bench.kernels.peers import DecodeKernel
from flashinfer_patches.strict import Strict
from lowp.paged.shapes import Shape
from vllm_launch.terminal import Step


class KernelsRequest(Strict):
    """Kernels and shapes by name; an empty list is all of them. Saved in the run's folder, so that --resume does the
    same."""

    kind: Literal["kernels"]
    kernels: list[str]
    shapes: list[str]

    @model_validator(mode="after")
    def _names_exist(self):
        """Raise for unknown names, such as those saved by another version."""
        if unknown := sorted({*self.kernels} - {*peers.names()}):
            raise ValueError(f"no kernels of this bench: {', '.join(unknown)}")
        for name in self.shapes:
            grid.parse(name)
        return self


@dataclass(frozen=True)
class KernelsRun:
    """A run, resolved. status, print_line, show_steps: as in terminal.Display."""

    folder: Path
    request: KernelsRequest
    kernels: list[DecodeKernel]
    shapes: list[Shape]
    status: Callable[[str], None] = print
    print_line: Callable[[str], None] = print
    show_steps: Callable[[list[Step]], None] = print

    @property
    def kernels_named(self) -> bool:
        """Whether the kernels were requested by name, so that a missing one is an error."""
        return bool(self.request.kernels)


def resolve(folder: Path, request: KernelsRequest) -> KernelsRun:
    """Look up the kernels and shapes of a request; writes nothing."""
    kernels = [kernel for kernel in peers.KERNELS if not request.kernels or kernel.name in request.kernels]
    return KernelsRun(folder, request, kernels, [grid.parse(name) for name in request.shapes] or grid.GRID)
