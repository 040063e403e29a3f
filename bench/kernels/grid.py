"""The shapes that kernels are measured at, and the bytes that they read. Imports nothing heavy."""

import random
import re

from bench.kernels.result import Geometry
from lowp.paged.shapes import HEAD_DIM, KV_HEADS, LAYOUT, PAGE_SIZE, QUERY_HEADS, Shape, even

GEOMETRY = Geometry(
    query_heads=QUERY_HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    page_size=PAGE_SIZE,
    layout=LAYOUT,
    query_format="bf16",
)
KV_FORMATS = QUANTISED, BASE = "e4m3", "bf16"
FORMAT_BYTES = {BASE: 2, QUANTISED: 1}  # of one stored value
ROTATE_BYTES = 400_000_000  # several times any GPU's cache, so that no call finds its keys and values there
MIN_LAYERS = 2
MIN_TOKENS, MAX_TOKENS = 1 << 10, 1 << 23  # of all requests: fewer need too many layers, more too much memory
WINDOW_LEFT = 127  # gpt-oss's sliding layers: the newest token and 127 before it
LONGEST = 131072

STANDARD = [
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
_drawn = random.Random(0)
RAGGED = [
    Shape((LONGEST, *(512,) * 31)),
    Shape(tuple(_drawn.randint(512, 16384) for _ in range(32))),
    Shape((8192, *(512,) * 3)),
]
WINDOWED = [even(*pair, window_left=WINDOW_LEFT) for pair in ((1, 8192), (8, 8192), (32, 8192), (128, 2048))]
WIDE_HEADS = [even(*pair, head_dim=128) for pair in ((1, 8192), (8, 8192), (32, 8192))]
WIDE_TABLES = [even(*pair, table_tokens=LONGEST) for pair in ((1, 2048), (8, 8192), (32, 2048))]
LAYOUTS = [
    even(*pair, layout=layout) for layout in ("interleaved", "NHD") for pair in ((1, 8192), (8, 8192), (32, 8192))
]
GRID = [*STANDARD, *RAGGED, *WINDOWED, *WIDE_HEADS, *WIDE_TABLES, *LAYOUTS]


def parse(text: str) -> Shape:
    """The shape of GRID with that name, or BATCHxCONTEXT; raises ValueError for any other text."""
    named = {str(shape): shape for shape in GRID}
    if text in named:
        return named[text]
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match or not MIN_TOKENS <= int(match[1]) * int(match[2]) <= MAX_TOKENS:
        raise ValueError(
            f"{text!r} is no shape to time: expected BATCHxCONTEXT such as 8x8192,"
            f" {MIN_TOKENS:,} to {MAX_TOKENS:,} tokens in all, or a name that --dry-run prints"
        )
    return even(int(match[1]), int(match[2]))


def kv_bytes(shape: Shape, kv_format: str) -> int:
    """Bytes of keys and values that a call must read."""
    return 2 * shape.tokens * GEOMETRY.kv_heads * shape.head_dim * FORMAT_BYTES[kv_format]


def layers(shape: Shape) -> int:
    """Number of caches that the calls rotate through, so that the smallest format's are ROTATE_BYTES at least."""
    smallest = min(kv_bytes(shape, kv_format) for kv_format in FORMAT_BYTES)
    return max(MIN_LAYERS, -(-ROTATE_BYTES // smallest))
