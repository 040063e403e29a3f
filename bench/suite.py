"""Suites: how to measure a model, as YAML: greedy prompts, grid of speeds, texts to score, and the accuracy gates."""

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Count, Positive, Strict
from vllm_launch import yaml_file
from vllm_launch.profile import Profile
from vllm_launch.profile import names as profile_names
from vllm_launch.yaml_file import Library

LIBRARY = Library("suite", Path(__file__).resolve().parent / "suites", "default")

Depth = Annotated[int, Field(ge=0)]
Factor = Annotated[float, Field(ge=1)]
RatioFigure = Literal["kl", "mean_abs_delta"]  # of accuracy.verdicts.Agreement: those that relative gates judge


class Greedy(Strict):
    """Greedy answers of `tokens` tokens; passed if more than `min_match` of them equal the reference profile's."""

    reference: str
    prompts: Annotated[list[str], Field(min_length=1)]
    tokens: Count
    min_match: Annotated[float, Field(ge=0, lt=1)]
    min_distinct: Count


class Grid(Strict):
    """What llama-benchy measures: token counts of context depth, prompt and output; requests at once; repeats.

    load_depth: the depths that are measured with every concurrency, the others with the lowest alone; None: all depths.
    """

    prompt: Annotated[list[Count], Field(min_length=1)]
    output: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    depth: Annotated[list[Depth], Field(min_length=1)]
    concurrency: Annotated[list[Count], Field(min_length=1)]
    load_depth: list[Depth] | None = None
    runs: Count

    @model_validator(mode="after")
    def _load_is_at_depths_of_the_grid(self) -> "Grid":
        if unknown := sorted({*(self.load_depth or [])} - {*self.depth}):
            raise ValueError(f"load_depth has {unknown[0]}, depth has {', '.join(map(str, self.depth))}")
        return self

    @property
    def points(self) -> int:
        """How many combinations of prompt, output, depth and concurrency are measured."""
        return sum(len(self.prompt) * len(self.output) * len(self.concurrency_at(depth)) for depth in self.depth)

    def every_point(self) -> list["GridPoint"]:
        """The points, depth by depth."""
        return [
            GridPoint(depth, *sizes)
            for depth in self.depth
            for sizes in product(self.prompt, self.output, self.concurrency_at(depth))
        ]

    @property
    def requests(self) -> int:
        """How many requests are measured."""
        at_once = sum(sum(self.concurrency_at(depth)) for depth in self.depth)
        return len(self.prompt) * len(self.output) * at_once * self.runs

    def concurrency_at(self, depth: int) -> list[int]:
        """The requests at once that are measured at a depth."""
        is_loaded = self.load_depth is None or depth in self.load_depth
        return self.concurrency if is_loaded else [min(self.concurrency)]

    def part_at(self, depth: int) -> "Grid":
        """The part of the grid that is measured at a depth."""
        return self.replaced({"depth": [depth], "concurrency": self.concurrency_at(depth)})

    def replaced(self, fields: Mapping[str, int | list[int]]) -> "Grid":
        """The grid with these fields instead of its own; with other depths or concurrencies, of all their pairs."""
        every_pair = {"load_depth": None} if {"depth", "concurrency"} & {*fields} else {}
        return Grid(**self.model_dump() | every_pair | fields)

    def first(self) -> "Grid":
        """The first point alone, measured once."""
        lists = ("prompt", "output", "depth", "concurrency")
        return self.replaced({name: getattr(self, name)[:1] for name in lists} | {"runs": 1})


class GridPoint(NamedTuple):
    """A point of the grid: sizes in tokens, requests at once."""

    depth: int
    prompt: int
    output: int
    concurrency: int

    @property
    def context(self) -> int:
        """Tokens in the KV cache halfway through the output."""
        return self.depth + self.prompt + self.output // 2


class ContextTexts(Strict):
    """`texts` pieces of text: `context` tokens of prompt, then `tokens` tokens that are scored.

    prefill: whether the server also returns prompt log-probabilities; with long prompts they are slow, since vLLM
    computes them for the whole prompt or not at all.
    """

    context: Count
    texts: Count
    tokens: Count
    prefill: bool = True


class Texts(Strict):
    """What to score. source: the model's own heldout.jsonl, or the book that llama-benchy's prompts come from."""

    source: Literal["heldout", "book"]
    contexts: Annotated[list[ContextTexts], Field(min_length=1)]

    @field_validator("contexts")
    @classmethod
    def _each_context_once(cls, contexts: list[ContextTexts]) -> list[ContextTexts]:
        lengths = [entry.context for entry in contexts]
        if repeated := [length for length in lengths if lengths.count(length) > 1]:
            raise ValueError(f"context {repeated[0]} is there twice")  # scores are grouped by context
        return contexts

    @property
    def tokens(self) -> int:
        return sum(entry.texts * entry.tokens for entry in self.contexts)

    @property
    def shortest_prefill(self) -> int | None:
        """The shortest context whose texts are scored by prefill too."""
        return min((entry.context for entry in self.contexts if entry.prefill), default=None)


class Bounds(Strict):
    """Bounds on accuracy.verdicts.Agreement, in its units: top1 is a minimum, the others are maxima; None: not judged.

    perplexity_ratio bounds the ratio and its inverse.
    """

    mean_abs_delta: Positive | None = None
    p99_abs_delta: Positive | None = None
    kl: Positive | None = None
    top1: Annotated[float, Field(ge=0, le=1)] | None = None
    perplexity_ratio: Factor | None = None


class SinkBounds(Strict):
    """Bounds of the sink check. None: not judged.

    mean_abs_delta: maximum (nats) between server and transformers with the true sinks. factor: how many times farther
    the nearest wrong sinks must be.
    """

    mean_abs_delta: Positive | None = None
    factor: Factor | None = None


class RelativeBounds(Strict):
    """Bounds on a profile's decode figures over those of another profile, in the same run; None: not judged.

    One figure within its bound passes. A figure is judged where the noise, the reference scored again in another
    order, is under max_noise times that profile's.
    """

    profile: str
    kl: Positive | None = None
    mean_abs_delta: Positive | None = None
    max_noise: Positive = 0.1

    @model_validator(mode="after")
    def _bounds_a_figure(self) -> "RelativeBounds":
        if not self.figures:
            raise ValueError("expected a bound: kl, mean_abs_delta or both")
        return self

    @property
    def figures(self) -> dict[RatioFigure, float]:
        """The bounds by figure."""
        bounds = {"kl": self.kl, "mean_abs_delta": self.mean_abs_delta}
        return {name: bound for name, bound in bounds.items() if bound is not None}


class Thresholds(Strict):
    """The accuracy gates of a profile. What is not given is measured but not judged.

    decode, prefill: against the reference profile, over all contexts; decode_at_context: at each single one. paths:
    decode against the same server's prefill, which no cache format disturbs. sinks: against transformers. relative:
    decode over another profile's.
    """

    decode: Bounds = Bounds()
    decode_at_context: Bounds = Bounds()
    prefill: Bounds = Bounds()
    paths: Bounds = Bounds()
    sinks: SinkBounds = SinkBounds()
    relative: RelativeBounds | None = None


class Suite(Strict):
    """How to measure a model. thresholds: by profile name."""

    name: str
    greedy: Greedy
    grid: Grid
    texts: Texts
    thresholds: dict[str, Thresholds]

    def check_thresholds(self, profiles: Iterable[Profile]) -> None:
        """Raise Problem("suite") for thresholds of or to what is no shipped profile and in no lineage of `profiles`."""
        known = {*profile_names(), *(name for profile in profiles for name in profile.lineage)}
        compared = {entry.relative.profile for entry in self.thresholds.values() if entry.relative}
        if unknown := sorted(({*self.thresholds} | compared) - known):
            message = f"suite {self.name} has thresholds of or to {unknown[0]}, which is no profile of this run"
            raise Problem("suite", message, f"known: {', '.join(sorted(known))}")

    def thresholds_of(self, profile: Profile) -> Thresholds:
        """The gates of a profile: its own on top of those of the profiles that it extends."""
        entries = [self.thresholds[name] for name in reversed(profile.lineage) if name in self.thresholds]
        return Thresholds(**reduce(yaml_file.merged, (entry.model_dump(exclude_unset=True) for entry in entries), {}))


def names() -> list[str]:
    """The suites that ship with the package."""
    return LIBRARY.names


def load(name: str | None, model_name: str) -> Suite:
    """The suite `name` or that of a path ending in .yaml; None: the model's own, else `default`.

    A reference that is a path is relative to the file that names it. Raises Problem("suite").
    """
    path = yaml_file.find(LIBRARY, name or (model_name if model_name in names() else "default"))
    layers = yaml_file.layers(LIBRARY, path)
    for layer_path, content in layers:
        greedy = content.get("greedy")
        if isinstance(greedy, dict) and str(greedy.get("reference")).endswith(".yaml"):
            greedy["reference"] = str(layer_path.parent / greedy["reference"])
    content = reduce(yaml_file.merged, (content for _, content in layers), {})
    return yaml_file.validated(LIBRARY, path, Suite, content | {"name": path.stem})
