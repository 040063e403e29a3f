"""Sizes of one decode call over a paged cache: plain data. Imports nothing heavy."""

from itertools import groupby
from typing import Literal, NamedTuple

QUERY_HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 64, 8, 64, 16  # gpt-oss's, and vLLM's page
Layout = Literal["HND", "NHD", "interleaved"]
LAYOUT: Layout = "HND"
MOST_GROUPS = 3  # of equal lengths that a name spells out


class Shape(NamedTuple):
    """The sizes of a batch, with gpt-oss's heads.

    lengths: tokens of each sequence. window_left: how many tokens before the newest are read, -1 for all.
    table_tokens: tokens that the block table has room for, 0 for as many as the longest sequence has. layout: of the
    cache in memory.
    """

    lengths: tuple[int, ...]
    window_left: int = -1
    head_dim: int = HEAD_DIM
    table_tokens: int = 0
    layout: Layout = LAYOUT

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
        return max(0, self.lengths[row] - 1 - self.window_left) if self.window_left >= 0 else 0

    def __str__(self) -> str:
        """On the command line: 8x8192, 1x131072+31x512, 32x8192w127, 8x8192d128, 8x8192t131072, 8x8192NHD."""
        window = f"w{self.window_left}" if self.window_left >= 0 else ""
        head_dim = f"d{self.head_dim}" if self.head_dim != HEAD_DIM else ""
        table = f"t{self.table_tokens}" if self.table_tokens else ""
        groups = self._groups()
        lengths = "+".join(f"{count}x{length}" for count, length in groups) if groups else self._range("x", "-", "d")
        return lengths + window + head_dim + table + (self.layout if self.layout != LAYOUT else "")

    @property
    def words(self) -> str:
        """In a report: 8 x 8,192, window of 128."""
        groups = self._groups()
        parts = [" + ".join(f"{count} x {length:,}" for count, length in groups) or self._range(" x ", " to ", ",d")]
        parts += [f"window of {self.window_left + 1}"] if self.window_left >= 0 else []
        parts += [f"head_dim {self.head_dim}"] if self.head_dim != HEAD_DIM else []
        parts += [f"table for {self.table_tokens:,}"] if self.table_tokens else []
        parts += [self.layout] if self.layout != LAYOUT else []
        return ", ".join(parts)

    def _groups(self) -> list[tuple[int, int]]:
        """Counts and lengths of equal neighbours, in order; none where they are too many for a name."""
        groups = [(len(list(group)), length) for length, group in groupby(self.lengths)]
        return groups if len(groups) <= MOST_GROUPS else []

    def _range(self, times: str, dash: str, form: str) -> str:
        return f"{self.batch}{times}{min(self.lengths):{form}}{dash}{max(self.lengths):{form}}"


def even(batch: int, context: int, **sizes: int | str) -> Shape:
    """Make a shape of `batch` sequences of `context` tokens each."""
    return Shape((context,) * batch, **sizes)
