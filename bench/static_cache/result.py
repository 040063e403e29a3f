"""The result of a run: a row for each measurement of one layer."""

from statistics import median
from typing import Literal

from pydantic import Field, model_validator

from bench.record.envelope import Envelope
from bench.static_cache.shapes import Backend, Point
from flashinfer_patches.strict import Count, NotNegative, Positive, Strict


class StaticCacheRow(Strict):
    """One layer's attention, or its whole frame: two attentions, commit and mask.

    design: ring, or the earlier rolled one. storage: a name of shapes.STORAGES. cache_bytes: of the window with its
    scales. predicted_us: by the roofline. time_us: median of samples_us. rel_l2: of the worst head against fp32
    attention over the dequantised cache. peak_bytes: allocated above what was resident, of attention over a ring.
    """

    part: Literal["attention", "frame"]
    design: Literal["ring", "rolled"]
    backend: Backend
    storage: str
    frame_tokens: Count
    window: Count
    cache_bytes: Count
    predicted_us: Positive
    samples_us: list[Positive] = Field(default_factory=list)
    time_us: Positive | None = None
    rel_l2: NotNegative | None = None
    peak_bytes: int | None = None
    error: str | None = None

    @property
    def point(self) -> Point:
        return Point(self.frame_tokens, self.window)

    @model_validator(mode="after")
    def _figures_or_error(self):
        if {self.error is None} != {bool(self.samples_us), self.rel_l2 is not None}:
            raise ValueError("expected samples_us and rel_l2, or an error")
        if self.time_us != (median(self.samples_us) if self.samples_us else None):
            raise ValueError(f"time_us is {self.time_us}, expected the median of samples_us")
        return self


class StaticCacheResult(Envelope):
    kind: Literal["static-cache"] = "static-cache"
    read_ceiling_bytes_per_s: Positive
    rows: list[StaticCacheRow]
