"""The result of kind `rollout`. Other tools read its keys: a key keeps its name and meaning."""

from typing import Literal

from pydantic import Field, JsonValue, model_validator

from bench.record.envelope import Envelope
from bench.rollout.intervals import Figure, Verdict
from bench.rollout.process import Mode
from bench.rollout.sweep import Settings, Sweep
from flashinfer_patches.strict import Count, NotNegative, Positive, Record, Strict


class Quality(Record):
    """Frames of a rollout against the truth, and against the reference's rollout (`alike`; None of the reference).

    PSNR in dB, of equal frames 100; by clip: means over frames; by frame: means over clips. end_by_clip: over the last
    quarter of the frames. drop: PSNR of the reference's frames less that of these. artefacts: frames that are black,
    flat or frozen where the truth is not.
    """

    psnr: Figure
    ssim: Figure
    psnr_by_clip: list[float]
    psnr_end_by_clip: list[float]
    psnr_by_frame: list[float]
    drop: Figure | None = None
    alike_psnr: Figure | None = None
    alike_ssim: Figure | None = None
    artefacts: dict[str, int]


class Times(Record):
    """Of a free-running rollout of one clip; cold frames are left out of the means.

    total_ms: of a frame; pipeline_ms: without draw_ms, the copy to the host. frame_ms: of each frame that is not cold.
    parts_ms: of the parts of a frame, which took parts_total_ms; where frames are compiled, of eager ones.
    """

    fps_total: Positive
    fps_pipeline: Positive
    total_ms: Positive
    pipeline_ms: Positive
    draw_ms: NotNegative
    frame_ms: list[float]
    cold_frames: list[int]
    parts_ms: dict[str, NotNegative]
    parts_total_ms: Positive
    eager_parts: bool


class Memory(Record):
    """Bytes of one clip's cache: of its windows, the same in BF16, by format; and of the device, None on a CPU."""

    window_bytes: Count
    bf16_bytes: Count
    total_bytes: Count
    by_format: dict[str, int]
    allocated: int | None
    reserved: int | None
    peak_allocated: int | None


class Transform(Record):
    """Linear layers that were converted. worst_sqnr: of any layer's output, dB."""

    format: str
    kernel: str
    layers: Count
    categories: dict[str, int]
    worst_sqnr: float | None


class Numerics(Record):
    """Counts of a side of the cache, K or V, over its layers. scale: least, mean and largest, None without scales."""

    at_limit: int
    clamped: int
    nan: int
    inf: int
    scale: tuple[float, float, float] | None


class Kernel(Strict):
    """A kernel, or an operator on a CPU, of a profiled rollout."""

    name: str
    calls: Count
    us: NotNegative


class Profiled(Strict):
    kernels: list[Kernel]
    copies: int


class RolloutRow(Record):
    """A cell. settings: all of them as requested. resolved: what they became on this device. error: why it failed, or
    was not run; its figures are missing then. verdict: on its drop from the reference, in both modes, by `drop_db`.
    """

    cell: str
    settings: Settings
    drop_db: Positive
    resolved: dict[str, JsonValue] = Field(default_factory=dict)
    transform: Transform | None = None
    quality: dict[Mode, Quality] = Field(default_factory=dict)
    times: Times | None = None
    memory: Memory | None = None
    numerics: dict[str, Numerics] = Field(default_factory=dict)
    dequantised_bytes: int = 0
    profile: Profiled | None = None
    verdict: Verdict = "not run"
    error: str | None = None

    @model_validator(mode="after")
    def _figures_or_error(self):
        if bool(self.quality) is bool(self.error):
            raise ValueError(f"cell {self.cell}: expected either figures or an error")
        return self


class Criterion(Strict):
    """What a gate asks of its cell, the verdict, and the figures that it follows from."""

    name: str
    verdict: Verdict
    detail: str


class GateRow(Record):
    gate: str
    cell: str
    verdict: Verdict
    criteria: list[Criterion]


class Incident(Record):
    """A gate that failed. steps: the gate on each cell that was run to fall back to, in order.

    outcome: the step with which it holds, None where none did.
    """

    gate: str
    cell: str
    issue: str
    steps: list[GateRow]
    outcome: str | None


class Right(Record):
    """Whether the reference may judge: PSNR in dB with the true history, of it and of what it must beat."""

    psnr: dict[str, Figure]
    beats_db: float
    loses_db: float


class LinearRow(Record):
    """A linear layer alone. ms: median of a call; sqnr: of its output, dB. error: why it was not run."""

    shape: str
    tokens: Count
    inputs: Count
    outputs: Count
    kernel: str
    ms: Positive | None = None
    sqnr: float | None = None
    error: str | None = None


class RolloutResult(Envelope):
    """checkpoint: sha256 of the model's file, None of the script's own."""

    kind: Literal["rollout"] = "rollout"
    sweep: Sweep
    device: Literal["cpu", "cuda"]
    checkpoint: str | None
    right: Right
    rows: list[RolloutRow]
    gates: list[GateRow]
    incidents: list[Incident]
    linears: list[LinearRow] = Field(default_factory=list)

    def row(self, cell: str) -> RolloutRow:
        return next(row for row in self.rows if row.cell == cell)
