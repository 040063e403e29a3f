"""Times of single requests, from llama-benchy's progress events: percentiles and rates of a point.

The times are llama-benchy's own, never those of reading its output. Time to first token and the end of the response
come from its monotonic clock. Chunks have only the wall-clock time of their event, written as soon as the chunk is
parsed, some 0.05 ms after it arrived; a clock that is set meanwhile shows in these gaps alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flashinfer_patches.strict import NotNegative, Strict

Milliseconds = Annotated[NotNegative, AfterValidator(lambda value: round(value, 2))]
Gap = Annotated[NotNegative, AfterValidator(lambda value: round(value, 1))]  # its clock is no finer, see above
Tokens = Annotated[int, Field(ge=0)]
ERROR_CHARACTERS = 300  # a server's error page is cut to these
NO_END = "no end of the response"
NO_TOKENS = "no tokens in the response"
CUT = "response cut short"


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


class GridPoint(NamedTuple):
    """A point of the grid: sizes in tokens, requests at once."""

    depth: int
    prompt: int
    output: int
    concurrency: int


class Event(BaseModel):
    """An event of schema llama-benchy-progress.v1. ts: wall-clock seconds."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    ts: float
    request_id: int


class RequestStart(Event):
    """Written just before the request is sent."""

    type: Literal["request_start"]
    context_size: int
    prompt_size: int
    response_size: int
    concurrency: int
    run_index: int

    @property
    def grid_point(self) -> GridPoint:
        return GridPoint(self.context_size, self.prompt_size, self.response_size, self.concurrency)


class FirstToken(Event):
    type: Literal["request_first_token"]
    ttft_s: NotNegative


class Chunk(Event):
    """estimated: the server sent no token IDs, and a chunk counts as one token."""

    type: Literal["tokens"]
    count: Tokens
    estimated: bool = False


class RequestEnd(Event):
    """decode_seconds: from the first token to the end of the response; 0 for a failed request.

    prompt_tokens: as the server counts them in its last chunk; 0 where that chunk did not come.
    """

    type: Literal["request_end"]
    total_tokens: Tokens
    prompt_tokens: Tokens = 0
    decode_seconds: NotNegative
    error: str = ""


EVENT = TypeAdapter(Annotated[RequestStart | FirstToken | Chunk | RequestEnd, Field(discriminator="type")])


def parse(lines: Iterable[str]) -> dict[GridPoint, list[RequestTimes]]:
    """The requests of each point, in the order in which llama-benchy numbered them.

    Events may come in any order. Torn lines, other events, and requests without a start are skipped: the caller
    compares the number of requests with the grid's.
    """
    requests: dict[int, list[Event]] = defaultdict(list)
    for event in _events(lines):
        requests[event.request_id].append(event)
    points: dict[GridPoint, list[tuple[float, RequestTimes]]] = defaultdict(list)
    for _, events in sorted(requests.items()):
        starts = [event for event in events if isinstance(event, RequestStart)]
        if starts:
            points[starts[0].grid_point].append(_request(starts[0], events))
    return {point: _with_offsets(sent_requests) for point, sent_requests in points.items()}


def _events(lines: Iterable[str]) -> Iterator[Event]:
    for line in lines:
        try:
            yield EVENT.validate_json(line)
        except ValidationError:
            continue


def _request(start: RequestStart, events: list[Event]) -> tuple[float, RequestTimes]:
    """When a request was sent, in wall-clock seconds, and its times."""
    first = next((event for event in events if isinstance(event, FirstToken)), None)
    end = next((event for event in events if isinstance(event, RequestEnd)), None)
    chunks = sorted((event for event in events if isinstance(event, Chunk)), key=lambda chunk: chunk.ts)
    sent = first.ts - first.ttft_s if first else start.ts
    error = _error(start, first, end)
    counted = sum(chunk.count for chunk in chunks)
    if error:
        e2e_s, tokens, complete = max(event.ts for event in events) - sent, counted, True
    else:
        e2e_s, tokens = first.ttft_s + end.decode_seconds, end.total_tokens
        complete = counted == tokens or any(chunk.estimated for chunk in chunks)
    gaps = [after.ts - before.ts for before, after in pairwise(chunks)]
    times = RequestTimes(
        run=start.run_index,
        start_ms=0,
        ttft_ms=1000 * first.ttft_s if first else None,
        e2e_ms=1000 * e2e_s,
        itl_ms=[1000 * gap for gap in gaps] if complete else [],
        tokens=tokens,
        error=error,
    )
    return sent, times


def _error(start: RequestStart, first: FirstToken | None, end: RequestEnd | None) -> str | None:
    """Why a request failed; None if it did not. llama-benchy calls some of these responses complete."""
    if end is None:
        return NO_END
    if end.error:
        return end.error[:ERROR_CHARACTERS]
    if end.total_tokens == 0:  # an empty response, or llama-benchy's own time limit, which has no text
        return NO_END if first else NO_TOKENS
    if first is None:
        return NO_TOKENS
    if end.total_tokens < start.response_size and end.prompt_tokens == 0:
        return CUT  # no last chunk; with one, the missing tokens had no text
    return None


def _with_offsets(sent_requests: list[tuple[float, RequestTimes]]) -> list[RequestTimes]:
    """The requests of a point, each with its start since the first one of the same repeat."""
    starts: dict[int, float] = {}
    for sent, times in sent_requests:
        starts[times.run] = min(sent, starts.get(times.run, sent))
    return [
        times.model_copy(update={"start_ms": round(1000 * (sent - starts[times.run]), 2)})
        for sent, times in sent_requests
    ]


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


def latencies(requests: Sequence[RequestTimes]) -> Latencies:
    """Latencies of the requests that succeeded."""
    succeeded = [request for request in requests if request.error is None]
    return Latencies(
        ttft=percentiles(request.ttft_ms for request in succeeded),
        tpot=percentiles(request.tpot_ms for request in succeeded if request.tpot_ms is not None),
        itl=percentiles(gap for request in succeeded for gap in request.itl_ms),
        e2e=percentiles(request.e2e_ms for request in succeeded),
    )


def request_rates(requests: Sequence[RequestTimes]) -> list[float]:
    """Requests per second that succeeded, of each repeat of a point over its wall time."""
    return _rates(requests, lambda request: 1)


def token_rates(requests: Sequence[RequestTimes]) -> list[float]:
    """Output tokens per second of the requests that succeeded, of each repeat of a point over its wall time."""
    return _rates(requests, lambda request: request.tokens)


def _rates(requests: Sequence[RequestTimes], amount: Callable[[RequestTimes], int]) -> list[float]:
    return [
        sum(amount(request) for request in repeat if request.error is None) / wall_s(repeat)
        for repeat in repeats(requests)
    ]


def repeats(requests: Sequence[RequestTimes]) -> list[list[RequestTimes]]:
    repeats: dict[int, list[RequestTimes]] = defaultdict(list)
    for request in requests:
        repeats[request.run].append(request)
    return [repeat for _, repeat in sorted(repeats.items())]


def wall_s(repeat: list[RequestTimes]) -> float:
    """Seconds from the first request's start to the last one's end, failed ones included."""
    return max(request.start_ms + request.e2e_ms for request in repeat) / 1000
