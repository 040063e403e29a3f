"""Plan a batch: which requests the decode kernel computes, and which attention calls compute the prefills.

Plain numbers in, plain numbers out; no vLLM and no device. A batch is the requests of one engine step: first those
with few query tokens (decodes), then the prefills, as vLLM orders them. A request's tokens are its context, whose keys
are in the cache, and its new tokens, the query.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

JOINED_TOKENS = 256  # a prompt of up to so many tokens joins the call of requests with context before it


class Decodes(NamedTuple):
    """The first requests of a batch, for the decode kernel.

    rows: requests. query_tokens: of the longest. lengths: query tokens of each row where they differ, else None.
    """

    rows: int
    query_tokens: int
    lengths: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        return self.rows * self.query_tokens if self.lengths is None else sum(self.lengths)


class Piece(NamedTuple):
    """One attention call: the query tokens of consecutive requests over some of their keys.

    first_row, first_token: of the batch. query_lengths: query tokens of each row. starts, ends: of each row the tokens
    of the context that are read, starts[i] to ends[i] - 1. causal: whether the keys of the new tokens follow them, each
    seen from its token on; otherwise every query token sees all keys.
    """

    first_row: int
    first_token: int
    query_lengths: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    causal: bool

    @property
    def rows(self) -> int:
        return len(self.query_lengths)

    @property
    def tokens(self) -> int:
        return sum(self.query_lengths)

    @property
    def context_lengths(self) -> tuple[int, ...]:
        return tuple(end - start for start, end in zip(self.starts, self.ends, strict=True))

    @property
    def key_lengths(self) -> tuple[int, ...]:
        if not self.causal:
            return self.context_lengths
        return tuple(map(sum, zip(self.context_lengths, self.query_lengths, strict=True)))

    @property
    def reads_cache(self) -> bool:
        return any(self.context_lengths)


Group = tuple[Piece, ...]  # pieces with the same queries, whose outputs are merged by their LSE if there are several


class Plan(NamedTuple):
    """A planned batch. tokens: query tokens of all requests. prefills: by window_left."""

    tokens: int
    decodes: Decodes | None
    prefills: dict[int, tuple[Group, ...]]


def plan_batch(
    query_lengths: Sequence[int],
    lengths: Sequence[int],
    *,
    most_decode_tokens: int,
    windows: Sequence[int],
    scratch_rows: int,
) -> Plan:
    """Plan the requests of a step.

    query_lengths: query tokens of each request; 0 of padding, which is left out. lengths: tokens of each request,
    context and query; read for prefills only. most_decode_tokens: query tokens of a decode. windows: the distinct
    window_left of the layers, -1 for no window. scratch_rows: tokens whose keys fit in the scratch memory.
    Raises ValueError if a window's keys do not fit.
    """
    decodes = plan_decodes(query_lengths, most_decode_tokens)
    first_row, first_token = (decodes.rows, decodes.tokens) if decodes else (0, 0)
    prefills = {
        window_left: tuple(_plan_prefills(query_lengths, lengths, first_row, first_token, window_left, scratch_rows))
        for window_left in windows
        if any(query_lengths[first_row:])
    }
    return Plan(sum(query_lengths), decodes, prefills)


def plan_decodes(query_lengths: Sequence[int], most_tokens: int) -> Decodes | None:
    """Plan the first requests of up to `most_tokens` query tokens; None without any."""
    leading = []
    for length in query_lengths:
        if not 0 < length <= most_tokens:
            break
        leading.append(length)
    if not leading:
        return None
    longest = max(leading)
    return Decodes(len(leading), longest, None if min(leading) == longest else tuple(leading))


def pad_queries(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Lay out rows of different query lengths as rows of the longest one, each at the end of its row.

    Returns (sources, targets): of each padded position the token that it holds (in front of a row, that row's first),
    and of each token its padded position.
    """
    longest, sources, targets, first = max(lengths), [], [], 0
    for row, length in enumerate(lengths):
        tokens = range(first, first + length)
        sources += [first] * (longest - length) + list(tokens)
        targets += range((row + 1) * longest - length, (row + 1) * longest)
        first += length
    return sources, targets


def new_key_rows(piece: Piece) -> list[int]:
    """Return where the keys of a piece's new tokens lie among its keys: behind their request's context."""
    rows = []
    spans = zip(accumulate(piece.key_lengths), piece.query_lengths, strict=True)
    for end, length in spans:
        rows += range(end - length, end)
    return rows


def offsets(lengths: Sequence[int]) -> list[int]:
    """Return where each row begins if rows of these lengths follow one another, and where the last one ends."""
    return list(accumulate(lengths, initial=0))


def _plan_prefills(query_lengths, lengths, first_row, first_token, window_left, scratch_rows) -> Iterator[Group]:
    """Plan the requests from `first_row` on: runs of requests without context, and with context as many as fit."""
    rows: list[tuple[int, int, int]] = []  # of the next piece: query tokens, start and end of the context
    needed, next_row, next_token = 0, first_row, first_token

    def flush() -> Iterator[Group]:
        nonlocal rows, needed
        if rows:
            queries, starts, ends = zip(*rows, strict=True)
            yield (Piece(next_row - len(rows), next_token - sum(queries), queries, starts, ends, causal=True),)
        rows, needed = [], 0

    for query, length in zip(query_lengths[first_row:], lengths[first_row:], strict=True):
        context = length - query
        start = 0 if window_left < 0 else max(0, context - window_left)
        keys = length - start
        if not query:
            yield from flush()
        elif context == start:
            joins = query <= JOINED_TOKENS and needed + query <= scratch_rows
            if needed and not joins:  # the rows before have context
                yield from flush()
            rows.append((query, 0, 0))
            needed += query if needed else 0
        elif keys > scratch_rows:
            yield from flush()
            yield _chunked(next_row, next_token, query, context, window_left, scratch_rows)
        else:
            if needed + keys > scratch_rows or (rows and not needed):
                yield from flush()
            rows.append((query, start, context))
            needed += keys
        next_row, next_token = next_row + 1, next_token + query
    yield from flush()


def _chunked(row, token, query, context, window_left, scratch_rows) -> Group:
    """Split a request whose keys do not fit: its new keys first, then its context in equal parts."""
    if window_left >= 0:
        raise ValueError(
            f"{query} query tokens and a window of {window_left} tokens before them; expected at most {scratch_rows}"
        )
    chunks = -(-context // scratch_rows)
    bounds = [context * chunk // chunks for chunk in range(chunks + 1)]
    new_keys = Piece(row, token, (query,), (0,), (0,), causal=True)
    parts = (Piece(row, token, (query,), (start,), (end,), causal=False) for start, end in pairwise(bounds))
    return (new_keys, *parts)
