"""What is measured at one point of the grid."""

from typing import Annotated

from pydantic import Field

from bench.serving.load.counters import Counters
from bench.serving.load.failures import Failure
from bench.serving.load.packed import PackedRequests
from bench.serving.load.request_times import RequestTimes
from bench.suite import GridPoint
from flashinfer_patches.strict import NotNegative, Positive, Strict

Samples = Annotated[list[Positive], Field(min_length=1)]


class Attempt(Strict):
    """The measured requests of one point of the grid; sizes in tokens. A Rate if any repeat was whole.

    load_average: of the machine over the minute before the point's end. requests: the times of each, by repeat; empty
    in results from before they were recorded. failures: the failed requests, those that were never sent included.
    counters: the server's own; None where it has no /metrics, and in results from before they were read.
    """

    depth: int
    prompt: int
    output: int
    concurrency: int
    load_average: NotNegative | None = None
    requests: PackedRequests
    failures: list[Failure] = Field(default_factory=list)
    counters: Counters | None = None

    @property
    def failed(self) -> int:
        """How many requests failed or were never sent."""
        return sum(failure.requests for failure in self.failures)

    @property
    def total(self) -> int:
        """How many requests were to be measured; 0 where their times were not recorded."""
        return self.failed + sum(request.error is None for request in self.requests)

    @property
    def repeats(self) -> list[list[RequestTimes]]:
        """The requests of each repeat; none of a repeat that was never sent."""
        runs = range(1, self.total // self.concurrency + 1)
        return [[request for request in self.requests if request.run == run] for run in runs]

    @property
    def whole_repeats(self) -> list[list[RequestTimes]]:
        """The repeats in which no request failed: others had a smaller load, and have neither rates nor latencies."""
        return [
            repeat
            for repeat in self.repeats
            if len(repeat) == self.concurrency and not any(request.error for request in repeat)
        ]

    @property
    def grid_point(self) -> GridPoint:
        return GridPoint(self.depth, self.prompt, self.output, self.concurrency)

    @property
    def context(self) -> int:
        return self.grid_point.context


class Rate(Attempt):
    """An attempt, with llama-benchy's samples of its whole repeats: those in which no request failed.

    llama-benchy leaves failed requests out of its figures: a repeat with some would have the rate of a smaller load.
    decode_tok_s, prefill_tok_s: a sample for each whole repeat, summed over the concurrent requests. first_token_ms:
    the time to first token of each of their requests.
    """

    decode_tok_s: Samples
    prefill_tok_s: Samples
    first_token_ms: Samples
