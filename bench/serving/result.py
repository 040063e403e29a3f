"""The result of kind `serving`: each profile's answers and speed."""

from typing import Annotated, Literal

from pydantic import Field

from bench.accuracy.result import AccuracyRow
from bench.record.envelope import Envelope, Wiped
from bench.serving.goodput import Slo
from bench.serving.stream import GridPoint, RequestTimes
from flashinfer_patches.strict import NotNegative, Positive, Strict
from vllm_launch.model import Model

Samples = Annotated[list[Positive], Field(min_length=1)]


class Rate(Strict):
    """llama-benchy's samples at one point of the grid; sizes in tokens.

    decode_tok_s, prefill_tok_s: a sample for each repeat, summed over the concurrent requests. first_token_ms: the time
    to first token of each request. load_average: of the machine over the minute before the point's end. requests: the
    times of each, by repeat; empty in results from before they were recorded.
    """

    depth: int
    prompt: int
    output: int
    concurrency: int
    decode_tok_s: Samples
    prefill_tok_s: Samples
    first_token_ms: Samples
    load_average: NotNegative | None = None
    requests: Annotated[list[RequestTimes], Field(default_factory=list)]

    @property
    def grid_point(self) -> GridPoint:
        return GridPoint(self.depth, self.prompt, self.output, self.concurrency)

    @property
    def context(self) -> int:
        """Tokens in the KV cache halfway through the output."""
        return self.depth + self.prompt + self.output // 2


class ServingRow(AccuracyRow):
    """A profile's answers and speed. wiped: before the cold start. left_out: what --quick does not measure, as text."""

    RETIRED = ("completion",)

    wiped: Wiped | None
    rates: list[Rate]
    left_out: list[str] = Field(default_factory=list)


class ServingResult(Envelope):
    """slo: the limits of goodput; empty where none were given."""

    kind: Literal["serving"] = "serving"
    model: Model
    slo: Slo = Field(default_factory=dict)
    rows: list[ServingRow]
