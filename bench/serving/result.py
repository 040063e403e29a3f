"""The result of kind `serving`: what each profile answers, and how fast."""

from typing import Annotated, Literal

from pydantic import Field

from bench.accuracy.result import AccuracyRow
from bench.record.envelope import SCHEMA_VERSION, Wiped
from flashinfer_patches.strict import NotNegative, Positive, Strict
from vllm_launch.model import Model
from vllm_launch.provenance import Provenance

Samples = Annotated[list[Positive], Field(min_length=1)]


class Rate(Strict):
    """llama-benchy's samples at one point of the grid; token counts, one sample per repeat.

    decode_tok_s and prefill_tok_s sum over the requests at once; first_token_ms is the time to the first token.
    load_average: of the machine over the minute at whose end the point was measured.
    """

    depth: int
    prompt: int
    output: int
    concurrency: int
    decode_tok_s: Samples
    prefill_tok_s: Samples
    first_token_ms: Samples
    load_average: NotNegative | None = None

    @property
    def context(self) -> int:
        """Tokens in the KV cache halfway through the output."""
        return self.depth + self.prompt + self.output // 2


class ServingRow(AccuracyRow):
    """All that was measured with one profile."""

    wiped: Wiped | None
    completion: str | None
    rates: list[Rate]


class ServingResult(Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["serving"] = "serving"
    id: str
    provenance: Provenance
    model: Model
    rows: list[ServingRow]
