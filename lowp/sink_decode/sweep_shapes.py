"""The shapes that `sweep` measures, in order, and the launches that are measured at each."""

import itertools
import random
from dataclasses import astuple, dataclass

from lowp.formats import FORMATS
from lowp.jit.device import Device
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, QUERY_HEADS
from lowp.sink_decode.heuristic import NEAR_TOKENS, candidates, choose
from lowp.sink_decode.resources import Launch, Variant

WIDE = 131072  # tokens of a server's block table
MOST_TOKENS = 1 << 22
SHORT = 512
ONE_LONG = ((2, 131072), (4, 8192), (8, 8192), (8, 131072), (24, 8192), (32, 131072), (100, 16384))
BATCHES = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24, 32, 48, 64, 96, 128, 192, 256)
MEANS = (17, 512, 2048, 8192, 32768, 131072)


@dataclass(frozen=True)
class Shape:
    """One call: batch, lengths, the table's width.

    kind: of lengths up to `tokens`: near (within 64 and an eighth), uniform (half to full), one (others have SHORT).
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
            return [self.tokens, *[SHORT] * (self.batch - 1)]
        return [self.tokens - 13 * row % min(64, self.tokens // 8) for row in range(self.batch)]

    @property
    def read_lengths(self) -> list[int]:
        return [min(n, self.window_left + 1) if self.window_left >= 0 else n for n in self.lengths]

    @property
    def tiles(self) -> list[int]:
        """Tiles of 16 tokens that are read: a window begins anywhere in its first."""
        first = [max(0, n - self.window_left - 1) // 16 if self.window_left >= 0 else 0 for n in self.lengths]
        return [-(-n // 16) - tile for n, tile in zip(self.lengths, first, strict=True)]

    @property
    def kv_bytes(self) -> int:
        return sum(self.read_lengths) * KV_HEADS * HEAD_DIM * 2 * FORMATS[self.kv_format].dtype.itemsize

    @property
    def variant(self) -> Variant:
        dtype = FORMATS[self.kv_format].dtype
        interleaved = self.layout == "interleaved" and dtype.itemsize == 1
        return Variant(
            HEAD_DIM, QUERY_HEADS // KV_HEADS, True, dtype, False, self.window_left >= 0, interleaved=interleaved
        )

    @property
    def bound(self) -> int:
        return min(self.table_tokens, self.window_left + 1) if self.window_left >= 0 else self.table_tokens


def shapes() -> list[Shape]:
    """Most telling first: half of the batches before the other half, e4m3 before bf16, wide tables before narrow."""
    ordered = []
    for batches in (BATCHES[::2], BATCHES[1::2]):
        for kv_format, kind in itertools.product(("e4m3", "bf16"), ("near", "uniform")):
            pairs = [(b, n) for b, n in itertools.product(batches, MEANS) if b * n <= MOST_TOKENS]
            ordered += [Shape(kv_format, b, n, kind, WIDE) for b, n in pairs]
            narrow = [(b, n) for b, n in pairs if n >= 512 and b * n >= 2048]
            ordered += [Shape(kv_format, b, n, kind, max(n, 512), layout="HND") for b, n in narrow]
            if kind == "near":
                ordered += [Shape(kv_format, b, 2048, kind, WIDE, window_left=127) for b in batches]
            elif batches[0] == 1:
                ordered += [Shape(kv_format, b, n, "one", WIDE) for b, n in ONE_LONG]
                ordered += [Shape(kv_format, b, n, "one", n, layout="HND") for b, n in ONE_LONG]
    return ordered


def launches_at(shape: Shape, device: Device) -> list[Launch]:
    """Today's choice, then the candidates."""
    chosen = choose(shape.variant, shape.batch, KV_HEADS, shape.bound, device, shape.bound <= NEAR_TOKENS)
    return list(dict.fromkeys([chosen, *candidates(shape.variant, shape.batch, KV_HEADS, shape.bound, device)]))


def key(launch: Launch) -> str:
    """A launch in a word: its fields in order."""
    return ",".join(str(int(value)) for value in astuple(launch))
