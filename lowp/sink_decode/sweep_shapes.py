"""The shapes that `sweep` measures, in order, and the launches that are measured at each."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from lowp.formats import FORMATS
from lowp.jit.device import Device
from lowp.paged import shapes as paged
from lowp.paged.shapes import CACHES, HEAD_DIM, KV_HEADS, QUERY_HEADS
from lowp.sink_decode.heuristic import NEAR_TOKENS, candidates, choose
from lowp.sink_decode.resources import Launch, Variant

WIDE = 131072  # tokens of a server's block table
MOST_TOKENS = 1 << 22
SHORT_ROW = 512  # tokens of the others beside one long row
WINDOWED_TOKENS = 2048
KV_FORMATS = ("e4m3", "bf16")
KINDS, TABLES = ("near", "uniform", "one"), ("wide", "narrow", "window")
LONG_ROWS = ((2, 131072), (4, 8192), (8, 8192), (8, 131072), (24, 8192), (32, 131072), (100, 16384))
BATCHES = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24, 32, 48, 64, 96, 128, 192, 256)
MEANS = (17, 512, 2048, 8192, 32768, 131072)


@dataclass(frozen=True)
class Shape:
    """One call: batch, lengths, the table's width.

    kind: of lengths up to `tokens`: near (within 64 and an eighth), uniform (half to full), one (the others SHORT_ROW).
    """

    kv_format: str
    batch: int
    tokens: int
    kind: str
    table_tokens: int
    window_left: int = -1
    layout: str = "interleaved"

    @property
    def lengths(self) -> list[int]:
        if self.kind == "uniform":
            draw = random.Random(f"{self.batch}x{self.tokens}")
            return [draw.randint(max(1, self.tokens // 2), self.tokens) for _ in range(self.batch)]
        if self.kind == "one":
            return [self.tokens, *[SHORT_ROW] * (self.batch - 1)]
        return [self.tokens - 13 * row % max(1, min(64, self.tokens // 8)) for row in range(self.batch)]

    @property
    def bound(self) -> int:
        """The most tokens that are read of a sequence."""
        return min(self.table_tokens, self.window_left + 1) if self.window_left >= 0 else self.table_tokens

    @property
    def tiles(self) -> list[int]:
        """Tiles of 16 tokens that are read of each sequence: a window begins anywhere in its first."""
        return [-(-n // 16) - max(0, n - self.bound) // 16 for n in self.lengths]

    @property
    def kv_bytes(self) -> int:
        tokens = sum(min(n, self.bound) for n in self.lengths)
        return tokens * KV_HEADS * CACHES[self.kv_format].token_bytes(HEAD_DIM)

    @property
    def sizes(self) -> paged.Shape:
        sizes = {"window_left": self.window_left, "table_tokens": self.table_tokens, "layout": self.layout}
        return paged.Shape(tuple(self.lengths), **sizes)

    @property
    def variant(self) -> Variant:
        cache = CACHES[self.kv_format]
        options = {
            "token_scales": cache.v_scale == "token_head",
            "channel_scales": cache.k_scale == "channel",
            "window": self.window_left >= 0,
            "interleaved": self.layout == "interleaved" and cache.value_bytes == 1,
        }
        return Variant(HEAD_DIM, QUERY_HEADS // KV_HEADS, True, FORMATS[cache.values].dtype, **options)


def shapes(
    batches=(), tokens=(), kinds: Sequence[str] = KINDS, tables: Sequence[str] = TABLES, kv_formats=KV_FORMATS
) -> list[Shape]:
    """List the shapes in the order of what they tell: every second batch before the others, the first format first.

    batches, tokens: every pair of both, in place of BATCHES, MEANS and LONG_ROWS. tables: wide, of WIDE tokens; narrow,
    as wide as the sequences; window, wide with a window of 128.
    """
    long_rows = itertools.product(batches or BATCHES, tokens or MEANS) if batches or tokens else LONG_ROWS
    long_rows, batches, ordered = list(long_rows), batches or BATCHES, []
    for half in (batches[::2], batches[1::2]):
        grid = [(b, n) for b, n in itertools.product(half, tokens or MEANS) if b * n <= MOST_TOKENS]
        for kv_format, kind, table in itertools.product(kv_formats, kinds, tables):
            pairs = long_rows if kind == "one" else grid
            if table == "wide":
                ordered += [Shape(kv_format, b, n, kind, WIDE) for b, n in pairs]
            elif table == "narrow":
                pairs = [(b, n) for b, n in pairs if n >= 512 and b * n >= 2048]
                layout = "interleaved" if kv_format == "int8" else "HND"
                ordered += [Shape(kv_format, b, n, kind, n, layout=layout) for b, n in pairs]
            elif kind == "near":
                ordered += [Shape(kv_format, b, n, kind, WIDE, 127) for b, n in pairs if n == WINDOWED_TOKENS]
    return list(dict.fromkeys(shape for shape in ordered if shape.tokens <= WIDE))


def launches_at(shape: Shape, device: Device) -> list[Launch]:
    """Return the choice, then the other candidates."""
    chosen = choose(shape.variant, shape.batch, KV_HEADS, shape.bound, device, shape.bound <= NEAR_TOKENS)
    return list(dict.fromkeys([chosen, *candidates(shape.variant, shape.batch, KV_HEADS, shape.bound, device)]))


def key(launch: Launch) -> str:
    """Return a launch's fields in order, as one word."""
    return ",".join(str(int(value)) for value in astuple(launch))
