"""Times of requests as columns: at most half the bytes of rows in a result file."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from bench.serving.load.request_times import Milliseconds, RequestTimes, Tokens
from flashinfer_patches.strict import Strict

GAP_MS = 0.1  # unit of the gaps between tokens


class Columns(Strict):
    """The fields of RequestTimes, an entry for each request. gaps: `itl_ms` in tenths of a millisecond."""

    run: list[int]
    start_ms: list[Milliseconds]
    ttft_ms: list[Milliseconds | None]
    e2e_ms: list[Milliseconds]
    tokens: list[Tokens]
    error: list[str | None]
    gaps: list[Annotated[str, Field(pattern=r"^(\d+( \d+)*)?$")]]


def pack(requests: Sequence[RequestTimes]) -> dict | list:
    """The requests as Columns; an empty list for none."""
    if not requests:
        return []
    table = {name: [getattr(request, name) for request in requests] for name in RequestTimes.model_fields}
    gaps = [" ".join(str(round(gap / GAP_MS)) for gap in gaps) for gaps in table.pop("itl_ms")]
    return table | {"gaps": gaps}


def unpack(packed: Any) -> Any:
    """The fields of each request; anything but columns, such as the rows of an older result, unchanged."""
    if not isinstance(packed, dict):
        return packed
    table = dict(Columns.model_validate(packed))
    table["itl_ms"] = [[int(word) * GAP_MS for word in gaps.split()] for gaps in table.pop("gaps")]
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


PackedRequests = Annotated[
    list[RequestTimes],
    BeforeValidator(unpack),
    PlainSerializer(pack),
    WithJsonSchema(Columns.model_json_schema()),
    Field(default_factory=list),
]
