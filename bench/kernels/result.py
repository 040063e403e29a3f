"""The result of kind `kernels`. Other tools read its keys: a key keeps its name and meaning."""

from statistics import median
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bench.record.envelope import Envelope
from flashinfer_patches.strict import NotNegative, Positive, Strict
from lowp.paged.shapes import HEAD_DIM, LAYOUT, Layout, Shape


class Geometry(Strict):
    """The defaults of the rows, which may differ in head_dim and layout. layout: as FlashInfer names a cache's axes."""

    query_heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    layout: Literal["NHD", "HND"]
    query_format: str


class Build(Strict):
    """First call of a kernel with an empty cache: compile, load, run once. seconds: None where it failed.

    The smallest call with this head_dim, with a sliding window or without. FlashInfer's kernels build several at once
    and compete for the cores.
    """

    kernel: str
    kv_format: str
    head_dim: int = HEAD_DIM
    windowed: bool = False
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
    """One kernel at one shape: `batch` requests of `context` tokens each, one query token a request.

    lengths: each request's tokens where they differ; context is then the longest. window_left: tokens read before the
    newest, -1 for all. table_tokens: tokens that the block table has room for, None for context. layout: of the cache;
    interleaved is HND with each token's keys and values side by side. kv_bytes: keys and values that a call must read.
    time_us: median of samples_us, microseconds per call. rel_l2: error of the timed calls' outputs,
    |out - exact| / |exact|, against float64 attention over the cache as stored, in the first and last two requests and
    the longest. setting: the fastest of the kernel's settings. A kernel that failed has `error` and no figures.
    """

    kernel: str
    kv_format: str
    batch: int
    context: int
    lengths: list[int] | None = None
    window_left: int = -1
    head_dim: int = HEAD_DIM
    table_tokens: int | None = None
    layout: Layout = LAYOUT
    kv_bytes: Annotated[int, Field(gt=0)]
    time_us: Positive | None
    samples_us: list[Positive]
    rel_l2: NotNegative | None
    setting: str | None
    error: str | None

    @property
    def shape(self) -> Shape:
        lengths = tuple(self.lengths or [self.context] * self.batch)
        return Shape(lengths, self.window_left, self.head_dim, self.table_tokens or 0, self.layout)

    @staticmethod
    def shape_fields(shape: Shape) -> dict:
        """The fields that name a shape."""
        return {
            "batch": shape.batch,
            "context": shape.context,
            "lengths": list(shape.lengths) if shape.ragged else None,
            "window_left": shape.window_left,
            "head_dim": shape.head_dim,
            "table_tokens": shape.table_tokens or None,
            "layout": shape.layout,
        }

    @model_validator(mode="after")
    def _figures_or_error(self):
        figures = (self.time_us, self.rel_l2)
        if self.error is None and (not self.samples_us or None in figures):
            raise ValueError("expected time_us, samples_us and rel_l2, or an error")
        if self.error is not None and (self.samples_us or figures != (None, None)):
            raise ValueError("got an error with figures, expected only one of them")
        if self.error is None and self.time_us != median(self.samples_us):
            raise ValueError(f"time_us is {self.time_us}, the median of samples_us {median(self.samples_us)}")
        return self


class KernelsResult(Envelope):
    """read_ceiling_bytes_per_s: the fastest read-only sweep of the run. cache_wiped_bytes: wiped before the builds."""

    RETIRED = ("tolerance",)

    kind: Literal["kernels"] = "kernels"
    geometry: Geometry
    read_ceiling_bytes_per_s: Positive
    cache_wiped_bytes: int
    builds: list[Build]
    left_out: list[Skipped] = Field(default_factory=list)
    rows: list[KernelRow]
