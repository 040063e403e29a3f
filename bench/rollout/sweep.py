"""Sweeps as data: cells of settings, gates on them, and the steps to fall back to where a gate fails."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from flashinfer_patches.strict import Count, Positive, Strict
from vllm_launch import yaml_file
from vllm_launch.yaml_file import Library

LIBRARY = Library("sweep", Path(__file__).resolve().parent / "sweeps", "default")
NAME = r"^[a-z0-9][a-z0-9+-]*$"  # of files and folders; the run's own have an underscore
Name = Annotated[str, Field(pattern=NAME)]
Settings = dict[str, JsonValue]
Part = Literal["mx", "kv"]


class Cell(Strict):
    """Settings of a rollout, laid over the sweep's. requires: gates that must have passed, else it is not run.

    drop_db: bound of its verdict in the report, in place of the sweep's.
    """

    settings: Settings
    requires: list[str] = Field(default_factory=list)
    drop_db: Positive | None = None


class Speed(Strict):
    """FPS at least `ratio` times those of a cell."""

    cell: str
    ratio: Positive


class Gate(Strict):
    """Bounds on a cell. drop_db: of PSNR to the truth below that of `base`. smaller_than: a cell with more cache bytes.

    stable_clips: in so many clips at least the last quarter of frames is within drop_db. part: the steps to fall back
    to. Black, flat and frozen frames fail every gate.
    """

    cell: str
    base: str
    drop_db: Positive
    part: Part
    fps: Speed | None = None
    smaller_than: str | None = None
    stable_clips: Count | None = None

    @property
    def cells(self) -> list[str]:
        """The cells that it is judged by."""
        names = [self.cell, self.base, self.smaller_than, self.fps.cell if self.fps else None]
        return [name for name in names if name]


class Fallback(Strict):
    """A step, taken where each setting in `when` has one of its values. profile: record the kernels of the rollout."""

    name: Name
    when: dict[str, list[JsonValue]] = Field(default_factory=dict)
    settings: Settings = Field(default_factory=dict)
    profile: bool = False

    def applies(self, current: Mapping[str, JsonValue]) -> bool:
        return all(current.get(key) in values for key, values in self.when.items())


class Judge(Strict):
    """What the reference must show before its drops mean anything, in dB of PSNR with the true history.

    beats_db: over copies of the last and the mean frame. loses_db: with the controls of another clip.
    """

    beats_db: float
    loses_db: float


class Sweep(Strict):
    """Cells of a world model, on the same clips with the same noise.

    clips, frames, context: frames of a clip, the first `context` of which are given. reference: the BF16 cell. noise: a
    cell that differs from it in rounding alone. common: settings under those of each cell.
    """

    name: str
    clips: Count
    frames: Count
    context: Count
    clip_seed: int
    seed: int
    reference: str
    noise: str | None = None
    drop_db: Positive
    judge: Judge
    common: Settings
    cells: dict[Name, Cell]
    gates: dict[Name, Gate] = Field(default_factory=dict)
    fallbacks: dict[Part | Literal["speed"], list[Fallback]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_exist_in_order(self):
        if self.context >= self.frames:
            raise ValueError(f"context is {self.context} of {self.frames} frames; expected fewer")
        order = list(self.cells)
        named = [self.reference, *([self.noise] if self.noise else [])]
        for name in (*named, *(cell for gate in self.gates.values() for cell in gate.cells)):
            if name not in self.cells:
                raise ValueError(f"no cell {name!r}; cells: {', '.join(order)}")
        for name, cell in self.cells.items():
            for gate in cell.requires:
                if gate not in self.gates:
                    raise ValueError(f"cell {name} requires the gate {gate!r}; gates: {', '.join(self.gates)}")
                if late := [each for each in self.gates[gate].cells if order.index(each) >= order.index(name)]:
                    raise ValueError(f"cell {name} requires the gate {gate}, whose cell {late[0]} comes later")
        return self

    def settings(self, cell: str) -> Settings:
        return self.common | self.cells[cell].settings


def load(name: str) -> Sweep:
    """The shipped sweep `name`, or that of a path ending in .yaml. Raises Problem("sweep")."""
    path = yaml_file.find(LIBRARY, name)
    content = reduce(yaml_file.merged, (content for _, content in yaml_file.layers(LIBRARY, path)), {})
    return yaml_file.validated(LIBRARY, path, Sweep, content | {"name": path.stem})
