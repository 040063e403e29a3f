"""The result of kind `kernels`. Other tools read its keys: a key keeps its name and meaning."""

from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from bench.record.envelope import Envelope
from bench.record.files import write_json
from flashinfer_patches.strict import NotNegative, Positive, Strict
from lowp.paged.shapes import HEAD_DIM, LAYOUT, QUERY_FORMAT, Layout, Shape, drawn, even

GridName = Literal["standard", "server", "random"]
# Rows of the other grids, thousands of them, are written without those of these fields that have their default.
OMITTED_DEFAULTS = ("head_dim", "query_tokens", "query_format", "samples_us", "setting", "error", "part")


class Geometry(Strict):
    """Sizes that all rows share, but for head_dim, layout and query format, which a row may override.

    layout: as FlashInfer names a cache's axes.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    layout: Literal["NHD", "HND"]
    query_format: str


class Build(Strict):
    """First call of a kernel with an empty cache: compile, load, run once. seconds: None where it failed.

    The smallest call with this head_dim and query, with a sliding window or without. FlashInfer's kernels build several
    at once and compete for the cores.
    """

    kernel: str
    kv_format: str
    head_dim: int = HEAD_DIM
    windowed: bool = False
    query_format: str = QUERY_FORMAT
    seconds: Positive | None
    error: str | None

    @model_validator(mode="after")
    def _seconds_or_error(self):
        if (self.seconds is None) is (self.error is None):
            raise ValueError(f"expected either seconds or an error, got {self.seconds} and {self.error!r}")
        return self


class Skipped(Strict):
    """A kernel that was not measured at a shape, and why. shape: as on the command line; None for all shapes."""

    kernel: str
    kv_format: str
    shape: str | None
    reason: str


class KernelRow(Strict):
    """One kernel, with one storage format of the cache, at one shape: its times and its error, or why it failed.

    The shape:
        batch, context: requests, and tokens of the longest. query_tokens: of each request.
        lengths: "equal", all of `context` tokens; "near" or "uniform", drawn by `lowp.paged.shapes.drawn`; or a list.
        window_left: tokens before the newest that are read, -1 for all.
        table_tokens: tokens that the block table has room for, None for as many as `context`.
        layout: of the cache; interleaved is HND with each token's keys and values side by side.
        kv_bytes: keys, values and scales that a call must read.
    What was measured, None if it failed:
        time_us: microseconds per call, calls back to back. samples_us: in the standard grid, those it is the median of.
        between_us: in the other grids, the same with a small addition after each call, less the addition.
        rel_l2: |out - exact| / |exact| of the timed calls' outputs, where exact is float64 attention over the stored
            cache, in the first and last two requests and the longest.
        setting: the fastest of the kernel's settings, by time_us.
    error: why the kernel failed. part: which part of a joined result the row is from, counted from 1.
    """

    kernel: str
    kv_format: str
    batch: int
    context: int
    lengths: Literal["equal", "near", "uniform"] | list[int] = "equal"
    window_left: int = -1
    head_dim: int = HEAD_DIM
    table_tokens: int | None = None
    layout: Layout = LAYOUT
    query_tokens: int = 1
    query_format: str = QUERY_FORMAT
    grid: GridName = "standard"
    kv_bytes: Annotated[int, Field(gt=0)]
    time_us: Positive | None
    between_us: Positive | None = None
    samples_us: list[Positive] = Field(default_factory=list)
    rel_l2: NotNegative | None
    setting: str | None = None
    error: str | None = None
    part: int = 1

    @property
    def shape(self) -> Shape:
        sizes = {
            "window_left": self.window_left,
            "head_dim": self.head_dim,
            "table_tokens": self.table_tokens or 0,
            "layout": self.layout,
            "query_tokens": self.query_tokens,
            "query_format": self.query_format,
        }
        if isinstance(self.lengths, list):
            return Shape(tuple(self.lengths), **sizes)
        if self.lengths == "equal":
            return even(self.batch, self.context, **sizes)
        return drawn(self.batch, self.context, self.lengths, **sizes)

    @staticmethod
    def shape_fields(shape: Shape) -> dict:
        """The fields that name a shape."""
        return {
            "batch": shape.batch,
            "context": shape.context,
            "lengths": shape.spread or (list(shape.lengths) if shape.ragged else "equal"),
            "window_left": shape.window_left,
            "head_dim": shape.head_dim,
            "table_tokens": shape.table_tokens or None,
            "layout": shape.layout,
            "query_tokens": shape.query_tokens,
            "query_format": shape.query_format,
        }

    @field_validator("lengths", mode="before")
    @classmethod
    def _null_is_equal(cls, lengths):
        """Older results have null for equal lengths."""
        return "equal" if lengths is None else lengths

    @model_validator(mode="after")
    def _figures_or_error(self):
        figures = (self.time_us, self.rel_l2, *([] if self.grid == "standard" else [self.between_us]))
        if self.error is None and None in figures:
            raise ValueError("expected time_us, rel_l2 and, of a server's shapes, between_us; or an error")
        if self.error is not None and (self.samples_us or any(figure is not None for figure in figures)):
            raise ValueError("got an error with figures, expected only one of them")
        if self.grid == "standard" and self.error is None and not self.samples_us:
            raise ValueError("expected samples_us, or an error")
        if self.samples_us and self.time_us != median(self.samples_us):
            raise ValueError(f"time_us is {self.time_us}, the median of samples_us {median(self.samples_us)}")
        return self

    @model_serializer(mode="wrap")
    def _compact(self, handler):
        fields = handler(self)
        if self.grid == "standard":
            return fields
        defaults = {
            name: type(self).model_fields[name].get_default(call_default_factory=True) for name in OMITTED_DEFAULTS
        }
        return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


class KernelsResult(Envelope):
    """A run of the kernel bench, or its parts joined.

    read_ceiling_bytes_per_s: the fastest read-only sweep of the run; of a joined result the highest of its parts'.

    part: which part of its grids the run measured, as on the command line; None for all, or all parts joined.
    part_ceilings: of a joined result, the read ceiling of each part. cache_wiped_bytes: wiped before the builds.
    """

    RETIRED = ("tolerance",)

    kind: Literal["kernels"] = "kernels"
    geometry: Geometry
    read_ceiling_bytes_per_s: Positive
    part: str | None = None
    part_ceilings: list[Positive] = Field(default_factory=list)
    cache_wiped_bytes: int
    builds: list[Build]
    left_out: list[Skipped] = Field(default_factory=list)
    rows: list[KernelRow]

    def ceiling(self, row: KernelRow) -> float:
        """The read ceiling of the GPU that measured a row."""
        return self.part_ceilings[row.part - 1] if self.part_ceilings else self.read_ceiling_bytes_per_s


def write_result(result: KernelsResult, path: Path) -> None:
    """Write a result as JSON, whole or not at all, each row on one line."""
    rows = ",\n  ".join(row.model_dump_json() for row in result.rows)
    text = result.model_copy(update={"rows": []}).model_dump_json(indent=1)
    write_json(text.replace('"rows": []', f'"rows": [\n  {rows}\n ]'), path)
