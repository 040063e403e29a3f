"""The shapes that kernels are measured at, and the bytes that they read. Imports nothing heavy."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from bench.kernels.result import Geometry, GridName
from lowp.paged.shapes import CACHES, HEAD_DIM, KV_HEADS, LAYOUT, PAGE_SIZE, QUERY_HEADS, Shape, drawn, even

GEOMETRY = Geometry(
    query_heads=QUERY_HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    page_size=PAGE_SIZE,
    layout=LAYOUT,
    query_format="bf16",
)
# In int8 every token and head has its scales; in int8-static K has them per channel, V per head.
KV_FORMATS = QUANTISED, BASE, INT8, INT8_STATIC = "e4m3", "bf16", "int8", "int8-static"
ROTATE_BYTES = 400_000_000  # several times any GPU's cache, so that no call finds its keys and values there
MIN_LAYERS = 2
MIN_TOKENS, MAX_TOKENS = 1 << 10, 1 << 23  # of all requests: fewer need too many layers, more too much memory
WINDOW_LEFT = 127  # gpt-oss's sliding layers: the newest token and 127 before it
LONGEST = 131072

PLAIN = [
    even(*pair)
    for pair in (
        (1, 2048),
        (1, 4096),
        (1, 8192),
        (1, 16384),
        (1, 32768),
        (1, LONGEST),
        (2, 8192),
        (4, 8192),
        (8, 8192),
        (32, 2048),
        (32, 8192),
        (64, 8192),
        (128, 1024),
        (512, 256),
    )
]
_ragged = Random(0)
RAGGED = [
    Shape((LONGEST, *(512,) * 31)),
    Shape(tuple(_ragged.randint(512, 16384) for _ in range(32))),
    Shape((8192, *(512,) * 3)),
]
WINDOWED = [even(*pair, window_left=WINDOW_LEFT) for pair in ((1, 8192), (8, 8192), (32, 8192), (128, 2048))]
PAIRS = ((1, 8192), (8, 8192), (32, 8192))
WIDE_HEADS = [even(*pair, head_dim=128) for pair in PAIRS]
WIDE_TABLES = [even(*pair, table_tokens=LONGEST) for pair in ((1, 2048), (8, 8192), (32, 2048))]
LAYOUTS = [even(*pair, layout=layout) for layout in ("interleaved", "NHD") for pair in PAIRS]
QUERIES = [even(*pair, query_tokens=tokens) for tokens in (2, 4) for pair in PAIRS]
QUERIES += [even(*pair, query_format="fp16") for pair in PAIRS]
STANDARD = [*PLAIN, *RAGGED, *WINDOWED, *WIDE_HEADS, *WIDE_TABLES, *LAYOUTS, *QUERIES]

SERVED = {"table_tokens": LONGEST, "layout": "interleaved"}  # as vLLM has cache and block table
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 32, 48, 64, 96, 128, 192, 256)
PEER_BATCHES = BATCHES[::2]
CONTEXTS = (17, 512, 2048, 8192, 32768, LONGEST)
SPREADS = ("", "near", "uniform")
MAX_CACHE_PAGES = 16_000_000_000 // (PAGE_SIZE * KV_HEADS * CACHES[BASE].token_bytes(HEAD_DIM))
RANDOM_SHAPES, RANDOM_SEED = 200, 16
# Calls in one graph of a served shape: for so many microseconds at about an H200's speed, within limits.
GRAPH_US, MIN_SERVED_CALLS, MAX_SERVED_CALLS = 1000.0, 4, 96
EXPECTED_US, EXPECTED_BYTES_PER_S = 3.5, 4.2e12


class Point(NamedTuple):
    """A shape of a grid. peers: whether other kernels than ours are measured there."""

    grid: GridName
    shape: Shape
    peers: bool = True

    @property
    def file_name(self) -> str:
        """Unique in a run."""
        return str(self.shape) if self.grid == "standard" else f"{self.grid}-{self.shape}"


def points(grids: Sequence[GridName], part: int = 1, parts: int = 1) -> list[Point]:
    """The points of the grids, or of one part: every `parts`-th point, so that each part covers the whole range."""
    return [point for name in grids for point in _grid(name)][part - 1 :: parts]


def parse(text: str, grids: Sequence[GridName] = ("standard",)) -> Point:
    """The point of the grids whose shape has that name; in the standard grid also BATCHxCONTEXT. Else ValueError."""
    named = {str(point.shape): point for point in points(grids)}
    if text in named:
        return named[text]
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if "standard" in grids and match and MIN_TOKENS <= int(match[1]) * int(match[2]) <= MAX_TOKENS:
        return Point("standard", even(int(match[1]), int(match[2])))
    pair = f"BATCHxCONTEXT such as 8x8192, {MIN_TOKENS:,} to {MAX_TOKENS:,} tokens in all, or "
    expected = f"{pair if 'standard' in grids else ''}a name that --dry-run prints"
    raise ValueError(f"{text!r} is no shape to time: expected {expected}")


def kv_bytes(shape: Shape, kv_format: str) -> int:
    """Bytes of keys, values and scales per token that a call must read; other scales are 2 KB at most."""
    return shape.tokens * GEOMETRY.kv_heads * CACHES[kv_format].token_bytes(shape.head_dim)


def layers(shape: Shape) -> int:
    """Number of caches that the calls rotate through, so that the smallest format's are ROTATE_BYTES at least."""
    return max(MIN_LAYERS, -(-ROTATE_BYTES // kv_bytes(shape, QUANTISED)))


def served_calls(shape: Shape) -> int:
    """Calls in one graph of a served shape."""
    return min(MAX_SERVED_CALLS, max(MIN_SERVED_CALLS, round(GRAPH_US / expected_us(shape, QUANTISED))))


def expected_us(shape: Shape, kv_format: str) -> float:
    """About the time of a call, to size a graph and to estimate a run before it starts."""
    return EXPECTED_US + kv_bytes(shape, kv_format) / EXPECTED_BYTES_PER_S * 1e6


def cache_pages(points: Sequence[Point]) -> int:
    """Pages of the cache that the served shapes share: as many as their calls have, at most MAX_CACHE_PAGES."""
    pages = [point.shape.pages * served_calls(point.shape) for point in points if point.grid != "standard"]
    return min(MAX_CACHE_PAGES, max(pages, default=0))


@cache
def _grid(name: GridName) -> list[Point]:
    """Server and random shapes are shuffled: neighbours in a part must not have one kind of length or window."""
    if name == "standard":
        return [Point(name, shape) for shape in STANDARD]
    points = list(_server() if name == "server" else _random())
    Random(RANDOM_SEED).shuffle(points)
    return points


def _server() -> Iterator[Point]:
    """Every batch and context whose cache has up to MAX_CACHE_PAGES, lengths of every spread, with and without window.

    One request has no spread.
    """
    for batch in BATCHES:
        for context in CONTEXTS:
            if batch * -(-context // PAGE_SIZE) > MAX_CACHE_PAGES:
                continue
            for spread in SPREADS if batch > 1 else SPREADS[:1]:
                for window_left in (-1, WINDOW_LEFT):
                    peers = window_left < 0 and spread != "near" and batch in PEER_BATCHES
                    yield Point("server", served(batch, context, spread, window_left), peers)


def _random() -> Iterator[Point]:
    """RANDOM_SHAPES of batch and context log-uniform, all different; half have a window, and no peers."""
    random, shapes = Random(RANDOM_SEED), {}
    while len(shapes) < RANDOM_SHAPES:
        batch = round(BATCHES[-1] ** random.random())
        context = round(CONTEXTS[0] * (LONGEST / CONTEXTS[0]) ** random.random())
        spread = random.choice(SPREADS) if batch > 1 else SPREADS[0]
        window_left = WINDOW_LEFT if len(shapes) % 2 else -1
        if batch * -(-context // PAGE_SIZE) <= MAX_CACHE_PAGES:
            shapes.setdefault(served(batch, context, spread, window_left))
    for shape in shapes:
        yield Point("random", shape, peers=shape.window_left < 0)


def served(batch: int, context: int, spread: str, window_left: int = -1) -> Shape:
    """Make a shape as a server has it."""
    options = {"window_left": window_left, **SERVED}
    return drawn(batch, context, spread, **options) if spread else even(batch, context, **options)
