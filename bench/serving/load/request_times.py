"""Times of single requests, and over them: percentiles, and rates of each repeat of a point."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from flashinfer_patches.strict import NotNegative, Strict

Milliseconds = Annotated[NotNegative, AfterValidator(lambda value: round(value, 2))]
Gap = Annotated[NotNegative, AfterValidator(lambda value: round(value, 1))]  # as fine as the clock of the gaps
Tokens = Annotated[int, Field(ge=0)]
RESOLUTION_MS = 0.01  # of Milliseconds


class RequestTimes(Strict):
    """A request's times; the measured requests of a point, its warm-up excluded.

    run: the repeat, from 1. start_ms: since the repeat's first request was sent. ttft_ms: to the first token; None
    without one. e2e_ms: to the end of the response, or to the failure. itl_ms: gaps between the chunks that carry
    tokens, as in `vllm bench serve`; empty where an event is missing. tokens: of the output. error: why it failed.
    """

    run: int
    start_ms: Milliseconds
    ttft_ms: Milliseconds | None
    e2e_ms: Milliseconds
    itl_ms: list[Gap]
    tokens: Tokens
    error: str | None = None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first, the mean over the request; None for fewer than two tokens."""
        if self.ttft_ms is None or self.tokens < 2:
            return None
        return (self.e2e_ms - self.ttft_ms) / (self.tokens - 1)


class Percentiles(NamedTuple):
    """Percentiles by nearest rank, and the number of samples behind them."""

    p50: float
    p95: float
    p99: float
    samples: int


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """p50, p95 and p99 of some samples, None of none.

    Nearest rank: the smallest sample that p percent of the samples do not exceed, never a value between two of them.
    So p95 of fewer than 20 samples, and p99 of fewer than 100, is their maximum.
    """
    ordered = sorted(values)
    if not ordered:
        return None
    p50, p95, p99 = (ordered[-(-percent * len(ordered) // 100) - 1] for percent in (50, 95, 99))
    return Percentiles(p50, p95, p99, len(ordered))


class Latencies(NamedTuple):
    """Percentiles in ms. ttft, tpot, e2e: over requests. itl: over the gaps of all requests."""

    ttft: Percentiles | None
    tpot: Percentiles | None
    itl: Percentiles | None
    e2e: Percentiles | None


Repeats = Sequence[Sequence[RequestTimes]]  # the requests of each repeat of a point


def latencies(whole_repeats: Repeats) -> Latencies:
    """Latencies of the requests of whole repeats."""
    requests = [request for repeat in whole_repeats for request in repeat]
    return Latencies(
        ttft=percentiles(request.ttft_ms for request in requests),
        tpot=percentiles(request.tpot_ms for request in requests if request.tpot_ms is not None),
        itl=percentiles(gap for request in requests for gap in request.itl_ms),
        e2e=percentiles(request.e2e_ms for request in requests),
    )


def request_rates(whole_repeats: Repeats) -> list[float]:
    """Requests per second of each whole repeat, over its wall time."""
    return _rates(whole_repeats, lambda request: 1)


def token_rates(whole_repeats: Repeats) -> list[float]:
    """Output tokens per second of each whole repeat, over its wall time."""
    return _rates(whole_repeats, lambda request: request.tokens)


def _rates(repeats: Repeats, amount: Callable[[RequestTimes], int]) -> list[float]:
    return [sum(map(amount, repeat)) / wall_s(repeat) for repeat in repeats]


def wall_s(repeat: Sequence[RequestTimes]) -> float:
    """Seconds from the first request's start to the last one's end, failed ones included; never 0."""
    return max(RESOLUTION_MS, *(request.start_ms + request.e2e_ms for request in repeat)) / 1000
