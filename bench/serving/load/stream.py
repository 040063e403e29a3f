"""llama-benchy's progress events as the times of single requests.

The times are llama-benchy's own, not those of reading its output. Time to first token and end of the response come from
its monotonic clock. A chunk has only the wall-clock time of its event, some 0.05 ms after the chunk arrived: where that
clock is set meanwhile, the gaps between tokens are wrong, nothing else.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bench.serving.load.request_times import RequestTimes, Tokens
from bench.suite import GridPoint
from flashinfer_patches.strict import NotNegative

ERROR_CHARACTERS = 300  # a server's error page is cut to these
NO_END = "no end of the response"
NO_TOKENS = "no tokens in the response"
CUT = "response cut short"


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
