"""What a run of the kernel bench measures: kernels, grids and shapes, by name and resolved."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from bench.kernels import grid, peers
from bench.kernels.grid import Point
from bench.kernels.peers import DecodeKernel
from bench.kernels.result import GridName
from flashinfer_patches.strict import Strict
from vllm_launch.terminal import Step


class KernelsRequest(Strict):
    """Kernels, storage formats, grids and shapes by name; no kernel or format is all of them, no shape all of the
    grids. Saved in the run's folder, so that --resume does the same.

    part: which of how many parts of the grids, as 1/2.
    """

    kind: Literal["kernels"]
    kernels: list[str]
    kv_formats: list[str] = Field(default_factory=list)
    shapes: list[str]
    grids: list[GridName] = Field(default_factory=lambda: ["standard"])
    part: str | None = None

    @model_validator(mode="after")
    def _names_exist(self):
        """Raise for unknown names, such as those saved by another version."""
        if unknown := sorted({*self.kernels} - {*peers.names()}):
            raise ValueError(f"no kernels of this bench: {', '.join(unknown)}")
        if not selected(self):
            raise ValueError(f"no kernel of those has a cache in {' or '.join(self.kv_formats)}")
        for name in self.shapes:
            grid.parse(name, self.grids)
        if self.part:
            part_of(self.part)
        return self


def selected(request: KernelsRequest) -> list[DecodeKernel]:
    """The kernels that a request names."""
    return [
        kernel
        for kernel in peers.KERNELS
        if (not request.kernels or kernel.name in request.kernels)
        and (not request.kv_formats or kernel.kv_format in request.kv_formats)
    ]


def part_of(text: str) -> tuple[int, int]:
    """Which of how many parts, from a text as 1/2; raises ValueError for any other."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"{text!r} is no part: expected I/N, with I from 1 to N")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class KernelsRun:
    """A run, resolved. status, print_line, show_steps: as in terminal.Display."""

    folder: Path
    request: KernelsRequest
    kernels: list[DecodeKernel]
    points: list[Point]
    status: Callable[[str], None] = print
    print_line: Callable[[str], None] = print
    show_steps: Callable[[list[Step]], None] = print

    @cached_property
    def cache_pages(self) -> int:
        """Pages of the cache that all served shapes share."""
        return grid.cache_pages(self.points)

    @property
    def kernels_named(self) -> bool:
        """Whether the kernels were requested by name, so that a missing one is an error."""
        return bool(self.request.kernels)


def resolve(folder: Path, request: KernelsRequest) -> KernelsRun:
    """Look up the kernels and shapes of a request; writes nothing."""
    points = [grid.parse(name, request.grids) for name in request.shapes]
    points = points or grid.points(request.grids, *part_of(request.part or "1/1"))
    return KernelsRun(folder, request, selected(request), points)
