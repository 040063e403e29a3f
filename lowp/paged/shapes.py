"""Sizes of one decode call over a paged cache: plain data. Imports nothing heavy."""

from functools import cache
from itertools import groupby
from random import Random
from typing import Literal, NamedTuple

QUERY_HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 64, 8, 64, 16  # gpt-oss's, and vLLM's page
Layout = Literal["HND", "NHD", "interleaved"]
LAYOUT: Layout = "HND"
Spread = Literal["", "near", "uniform"]
QUERY_FORMAT = "bf16"
SCALE_BYTES = 4
NEAR_TOKENS = 64  # lengths that are near differ by less
MOST_GROUPS = 3  # of equal lengths that a name spells out


class Cache(NamedTuple):
    """What a cache holds. values: their storage format; k_scale, v_scale: the granularity of K's and V's scales."""

    values: str
    value_bytes: int
    k_scale: str = "none"
    v_scale: str = "none"

    def token_bytes(self, head_dim: int) -> int:
        """Bytes of a token's K and V of one head, with the scales that belong to the token alone."""
        token_scales = (self.k_scale, self.v_scale).count("token_head")
        return 2 * head_dim * self.value_bytes + token_scales * SCALE_BYTES


CACHES = {  # by kv_format; static: the scales are known before the values
    "bf16": Cache("bf16", 2),
    "e4m3": Cache("e4m3", 1),
    "int8": Cache("int8", 1, "token_head", "token_head"),
    "int8-static": Cache("int8", 1, "channel", "head"),
}


class Shape(NamedTuple):
    """The sizes of a batch, with gpt-oss's heads.

    lengths: tokens of each sequence. window_left: how many tokens before the newest are read, -1 for all.
    table_tokens: tokens that the block table has room for, 0 for as many as the longest sequence has. layout: of the
    cache in memory. query_tokens: of each sequence, its last positions. query_format: bf16 or fp16. spread: how
    `drawn` drew the lengths, empty for lengths that were given.
    """

    lengths: tuple[int, ...]
    window_left: int = -1
    head_dim: int = HEAD_DIM
    table_tokens: int = 0
    layout: Layout = LAYOUT
    query_tokens: int = 1
    query_format: str = QUERY_FORMAT
    spread: Spread = ""

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def ragged(self) -> bool:
        return len(set(self.lengths)) > 1

    @property
    def plain(self) -> bool:
        """Whether batch and context determine the rest."""
        return self == even(self.batch, self.context)

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values one call must read."""
        return sum(length - self.first_token(row) for row, length in enumerate(self.lengths))

    def first_token(self, row: int) -> int:
        """The first token of a sequence that is read."""
        return max(0, self.lengths[row] - self.query_tokens - self.window_left) if self.window_left >= 0 else 0

    @property
    def page_spans(self) -> list[tuple[int, int]]:
        """Of each sequence the pages that are read, first and past the last."""
        return [(self.first_token(row) // PAGE_SIZE, -(-n // PAGE_SIZE)) for row, n in enumerate(self.lengths)]

    @property
    def pages(self) -> int:
        """Pages that one call reads."""
        return sum(end - start for start, end in self.page_spans)

    def __str__(self) -> str:
        """On the command line: 8x8192, 1x131072+31x512, 8x8192near, 32x8192w127, 8x8192d128, 8x8192t131072, 8x8192q2,
        8x8192fp16, 8x8192NHD."""
        window = f"w{self.window_left}" if self.window_left >= 0 else ""
        head_dim = f"d{self.head_dim}" if self.head_dim != HEAD_DIM else ""
        table = f"t{self.table_tokens}" if self.table_tokens else ""
        tokens = f"q{self.query_tokens}" if self.query_tokens > 1 else ""
        query = self.query_format if self.query_format != QUERY_FORMAT else ""
        layout = self.layout if self.layout != LAYOUT else ""
        return self._lengths("+", "x", "-", "d") + self.spread + window + head_dim + table + tokens + query + layout

    @property
    def words(self) -> str:
        """In a report: 8 x 8,192, window of 128."""
        parts = [self._lengths(" + ", " x ", " to ", ",d"), *([self.spread] if self.spread else [])]
        parts += [f"window of {self.window_left + 1}"] if self.window_left >= 0 else []
        parts += [f"head_dim {self.head_dim}"] if self.head_dim != HEAD_DIM else []
        parts += [f"table for {self.table_tokens:,}"] if self.table_tokens else []
        parts += [f"{self.query_tokens} query tokens"] if self.query_tokens > 1 else []
        parts += [f"{self.query_format} query"] if self.query_format != QUERY_FORMAT else []
        parts += [self.layout] if self.layout != LAYOUT else []
        return ", ".join(parts)

    def _lengths(self, plus: str, times: str, dash: str, form: str) -> str:
        """The lengths: as groups of equal neighbours, or from the least to the greatest where those are too many."""
        if self.spread:
            return f"{self.batch}{times}{self.context:{form}}"
        groups = [(len(list(group)), length) for length, group in groupby(self.lengths)]
        if len(groups) <= MOST_GROUPS:
            return plus.join(f"{count}{times}{length:{form}}" for count, length in groups)
        return f"{self.batch}{times}{min(self.lengths):{form}}{dash}{self.context:{form}}"


def even(batch: int, context: int, **sizes: int | str) -> Shape:
    """Make a shape of `batch` sequences of `context` tokens each."""
    return Shape((context,) * batch, **sizes)


def drawn(batch: int, context: int, spread: Spread, **sizes: int | str) -> Shape:
    """Make a shape of drawn lengths, the same for the same arguments; the longest sequence has `context` tokens.

    spread: near: all within NEAR_TOKENS of the longest; uniform: from half of it on.
    """
    return Shape(_lengths(batch, context, spread), spread=spread, **sizes)


@cache
def _lengths(batch: int, context: int, spread: Spread) -> tuple[int, ...]:
    least = {"near": max(1, context - NEAR_TOKENS + 1), "uniform": -(-context // 2)}[spread]
    random = Random(f"{spread} {batch} {context}")
    lengths = [random.randint(least, context) for _ in range(batch)]
    lengths[random.randrange(batch)] = context
    return tuple(lengths)
