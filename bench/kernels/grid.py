"""Where kernels are measured, and how many bytes that is. Imports nothing heavy."""

import re
from typing import NamedTuple

from bench.kernels.result import Geometry

GEOMETRY = Geometry(query_heads=64, kv_heads=8, head_dim=64, page_size=16, layout="HND", query_format="bf16")
FORMAT_BYTES = {"bf16": 2, "e4m3": 1}  # of one stored value
ROTATE_BYTES = 400_000_000  # several times any GPU's cache: a call finds none of its keys and values there
LEAST_LAYERS = 2
LEAST_TOKENS, MOST_TOKENS = 1 << 10, 1 << 23  # of all requests: fewer take too many layers, more too much memory


class Shape(NamedTuple):
    """`batch` requests of `context` tokens each."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.context}"


GRID = [
    Shape(*pair)
    for pair in (
        (1, 2048),
        (1, 8192),
        (1, 32768),
        (1, 131072),
        (8, 8192),
        (32, 2048),
        (32, 8192),
        (64, 8192),
        (128, 1024),
    )
]
# The original plan's own shapes, for its tolerance alone: too small to time, their caches never leave the GPU's.
PLAN_SHAPES = [Shape(batch, context) for batch in (1, 4) for context in (128, 1024)]
RTOL, ATOL = 1e-2, 1e-3


def parse(text: str) -> Shape:
    """The shape written as BATCHxCONTEXT, such as 8x8192; raises ValueError for anything else."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found or not LEAST_TOKENS <= int(found[1]) * int(found[2]) <= MOST_TOKENS:
        raise ValueError(
            f"{text!r} is no shape to time: expected BATCHxCONTEXT such as 8x8192,"
            f" {LEAST_TOKENS:,} to {MOST_TOKENS:,} tokens in all"
        )
    return Shape(int(found[1]), int(found[2]))


def kv_bytes(shape: Shape, kv_format: str) -> int:
    """Bytes of keys and values that one call must read."""
    tokens = shape.batch * shape.context
    return 2 * tokens * GEOMETRY.kv_heads * GEOMETRY.head_dim * FORMAT_BYTES[kv_format]


def layers(shape: Shape) -> int:
    """How many caches the calls go through in turn, so that the smallest format's are ROTATE_BYTES at least."""
    smallest = min(kv_bytes(shape, kv_format) for kv_format in FORMAT_BYTES)
    return max(LEAST_LAYERS, -(-ROTATE_BYTES // smallest))
