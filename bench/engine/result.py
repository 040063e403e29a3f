"""The result of kind `engine`. Other tools read its keys: a key keeps its name and meaning."""

from typing import Literal

from pydantic import Field, model_validator

from bench.engine.cells import Lengths
from bench.record.envelope import Envelope
from flashinfer_patches.strict import Count, NotNegative, Positive, Record, Strict
from vllm_launch.provenance import Provenance

Compilation = Literal["default", "none"]
Routing = Literal["spread", "dummy"]


class EngineRow(Record):
    """One cell of one start of an engine. error: why it was not measured; its figures are None then.

    piece: number of the piece; ratios hold within it alone. tensor_parallel: GPUs, or ranks on a CPU. runner: vLLM's
    model runner, v1 or v2. lengths: of the sequences at the start. cache: whether the prompts were assumed in the
    cache, or prefilled. step_ms: median of the samples, each the time of one step, none synchronised; mean_ms: from the
    first to the end of the last, over their number. distinct_tokens: of the sequences' last tokens; few mean that they
    take the same experts. ttft_s: median of its samples, of a single request that is prefilled. start_s: from the start
    of the process to a ready engine.
    """

    piece: Count = 1
    variant: str
    start: Count
    cell: str
    vllm: str
    compilation: Compilation
    runner: str | None = None
    backend: str | None = None
    decoder: str
    tensor_parallel: Count = 1
    cuda_graphs: str | None = None
    kv_format: str
    batch: Count | None
    context: Count
    lengths: Lengths
    cache: Literal["assumed", "prefilled"]
    step_ms: Positive | None = None
    mean_ms: Positive | None = None
    step_ms_samples: list[float] = Field(default_factory=list)
    distinct_tokens: Count | None = None
    capacity_tokens: Count | None = None
    tokens_per_s: Positive | None = None
    ttft_s: Positive | None = None
    ttft_s_samples: list[float] = Field(default_factory=list)
    prefill_tok_s: Positive | None = None
    start_s: Positive | None = None
    error: str | None = None

    @model_validator(mode="after")
    def _step_or_error(self):
        if (self.step_ms is None) is (self.error is None):
            raise ValueError(f"expected either a step or an error, got {self.step_ms} and {self.error!r}")
        return self


class Piece(Record):
    """Stock BF16 and the variants judged against it, measured on one machine.

    gpu: hash of the UUIDs of the engines' GPUs, None on a CPU. read_ceiling_bytes_per_s: measured before the engines.
    """

    id: str
    provenance: Provenance
    gpu: str | None
    read_ceiling_bytes_per_s: Positive | None


class LeftOut(Strict):
    """A cell that was not measured yet: the time was up."""

    piece: Count = 1
    variant: str
    start: Count
    cell: str


class KernelTime(Strict):
    """A kernel of a step: calls and microseconds a step."""

    name: str
    calls: NotNegative
    us: NotNegative


class StepProfile(Strict):
    """Kernels of a decode step at the cell with the highest ratio to stock BF16, by variant, the longest first."""

    piece: Count = 1
    cell: str
    kernels: dict[str, list[KernelTime]]


class EngineResult(Envelope):
    """shape: the model's, dummy weights. routing: of tokens to experts, spread over all or as dummy weights do."""

    kind: Literal["engine"] = "engine"
    shape: str
    compilation: Compilation
    routing: Routing
    pieces: list[Piece]
    rows: list[EngineRow]
    left_out: list[LeftOut] = Field(default_factory=list)
    profiles: list[StepProfile] = Field(default_factory=list)

    @model_validator(mode="after")
    def _pieces_exist(self):
        for entry in (*self.rows, *self.left_out, *self.profiles):
            if entry.piece > len(self.pieces):
                raise ValueError(f"piece {entry.piece} of {len(self.pieces)}")
        return self

    @property
    def vllm(self) -> str:
        return next(iter(row.vllm for row in self.rows), "?")

    @property
    def tensor_parallel(self) -> int:
        return next(iter(row.tensor_parallel for row in self.rows), 1)
