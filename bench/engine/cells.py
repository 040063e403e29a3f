"""The cells that engines are measured at: sequences at once, tokens of context, and how their lengths differ."""

import re
from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple

Lengths = Literal["near", "half"]
NEAR_TOKENS = 64
FULL_CONTEXT = 32768


class Cell(NamedTuple):
    """batch: None is as many sequences as the cache holds. lengths: within NEAR_TOKENS, or half to all of context."""

    batch: int | None
    context: int
    lengths: Lengths = "near"

    def __str__(self) -> str:
        size = "full" if self.batch is None else str(self.batch)
        context = "" if self.batch is None and self.context == FULL_CONTEXT else f"x{self.context}"
        return f"{size}{context}{'-half' if self.lengths == 'half' else ''}"

    @property
    def words(self) -> str:
        """As text for a table."""
        size = "cache full" if self.batch is None else f"{self.batch:,}"
        return f"{size} x {self.context:,}{', half to full' if self.lengths == 'half' else ''}"


def parse(text: str) -> Cell:
    """The cell of BATCHxCONTEXT, full or fullxCONTEXT, each with -half or without; raises ValueError for any other."""
    match = re.fullmatch(r"(?:([1-9]\d*)x([1-9]\d*)|full(?:x([1-9]\d*))?)(-half)?", text)
    if not match:
        raise ValueError(f"{text!r} is no cell: expected BATCHxCONTEXT such as 8x32768, or full; -half spreads lengths")
    batch, context = match[1], match[2] or match[3] or FULL_CONTEXT
    return Cell(int(batch) if batch else None, int(context), "half" if match[4] else "near")


# Measured by every start; the others by the first alone.
JUDGED = [parse(name) for name in ("1x2048", "1x122880", "8x32768", "32x8192", "128x2048", "full")]
CELLS = [parse(name) for name in ("1x2048", "1x32768", "1x122880", "8x32768", "8x32768-half", "32x8192")]
CELLS += [parse(name) for name in ("32x8192-half", "128x2048", "128x2048-half", "full")]


def lengths(cell: Cell, batch: int) -> list[int]:
    """Start lengths of `batch` sequences, evenly spaced, shuffled; the longest is the cell's context."""
    spread = min(NEAR_TOKENS - 1, cell.context - 1) if cell.lengths == "near" else cell.context // 2
    tokens = [cell.context - spread * index // max(1, batch - 1) for index in range(batch)]
    Random(batch).shuffle(tokens)
    return tokens


def order(cells: Sequence[str]) -> list[str]:
    """Cells by batch, context and lengths; a full cache last."""
    return sorted(
        cells, key=lambda name: ((cell := parse(name)).batch or 1 << 30, cell.context, cell.lengths == "half")
    )
