"""Shapes and storages that are measured, their bytes and the roofline's prediction. Imports no torch."""

from typing import Literal, NamedTuple

HEADS, HEAD_DIM = 24, 64  # of a layer, one sequence
FRAME_TOKENS, WINDOWS = (16, 64, 256), (16384, 65536, 131072)
FLOPS = 500e12  # per second in BF16: assumed, what good attention kernels reach on an H200
BITS = {"bf16": 16, "e4m3": 8, "e5m2": 8, "int8": 8, "mxfp8": 8, "mxfp4": 4}
SCALE_BYTES = {"none": 0, "head": 0, "token_head": 4, "block": HEAD_DIM // 32}  # of a token and head
STEPS = 2  # sampling steps of a frame; the last one commits

Backend = Literal["flex", "sdpa", "triton"]


class Storage(NamedTuple):
    """Format and scales of K and V. Scales: none, head (fixed), token_head, block."""

    k_format: str
    k_scale: str
    v_format: str
    v_scale: str


class Point(NamedTuple):
    frame_tokens: int
    window: int

    def __str__(self) -> str:
        return f"{self.frame_tokens}x{self.window}"


BF16, V_INT8, INT8 = "bf16", "V int8", "K, V int8"
STORAGES = {
    BF16: Storage("bf16", "none", "bf16", "none"),
    "V e4m3": Storage("bf16", "none", "e4m3", "head"),
    V_INT8: Storage("bf16", "none", "int8", "token_head"),
    "V mxfp8": Storage("bf16", "none", "mxfp8", "block"),
    "V mxfp4": Storage("bf16", "none", "mxfp4", "block"),
    "K, V e4m3": Storage("e4m3", "token_head", "e4m3", "head"),
    "K e5m2, V e4m3": Storage("e5m2", "head", "e4m3", "head"),
    INT8: Storage("int8", "token_head", "int8", "token_head"),
    "K, V mxfp8": Storage("mxfp8", "block", "mxfp8", "block"),
}
POINTS = [Point(tokens, window) for window in WINDOWS for tokens in FRAME_TOKENS]
MAIN_WINDOW = 65536  # where every storage is measured, by FlexAttention too if it reads the formats
FLEX_STORAGES = (BF16, "V e4m3", "K e5m2, V e4m3")
FUSED_STORAGES = ("V e4m3", V_INT8, "K, V e4m3", INT8)
# Whole frames, attention with update and mask, against the rolled cache.
FRAME_POINTS = [Point(16, MAIN_WINDOW), Point(64, MAIN_WINDOW)]
FRAME_STORAGES = (V_INT8, INT8)
FRAME_DESIGNS = (("rolled", "flex"), ("rolled", "sdpa"), ("ring", "triton"))


def attention_cases(point: Point) -> list[tuple[Backend, str]]:
    """List the backends and storages whose attention is measured at a point; BF16 with FlexAttention comes first."""
    every = point.window == MAIN_WINDOW
    flex, fused = (FLEX_STORAGES, STORAGES) if every else ((BF16,), FUSED_STORAGES)
    return [*(("flex", name) for name in flex), *(("triton", name) for name in fused)]


def window_bytes(storage: Storage, window: int) -> int:
    """Return the bytes of a layer's window with its scales."""
    bits = (BITS[storage.k_format] + BITS[storage.v_format]) * HEAD_DIM
    return HEADS * window * (bits // 8 + SCALE_BYTES[storage.k_scale] + SCALE_BYTES[storage.v_scale])


def attention_us(point: Point, storage: Storage, ceiling: float) -> float:
    """Predict the time of one layer's attention: bytes at the read ceiling, or its arithmetic if that is longer."""
    flops = 4 * point.frame_tokens * (point.window + point.frame_tokens) * HEADS * HEAD_DIM
    return max(window_bytes(storage, point.window) / ceiling, flops / FLOPS) * 1e6


def rolled_us(point: Point, storage: Storage, ceiling: float) -> float:
    """Predict a frame of the earlier design in one layer: what it moves at the read ceiling.

    Each step dequantises (reads codes, writes BF16) and concatenates (reads and writes BF16) before its attention; the
    commit reads and writes what is stored.
    """
    stored, plain = window_bytes(storage, point.window), window_bytes(STORAGES[BF16], point.window)
    sides = [side for side in (storage.k_format, storage.v_format) if side != "bf16"]
    codes = stored - plain // 2 * (2 - len(sides))
    moved = codes + plain // 2 * len(sides) + 2 * plain
    return (STEPS * moved + 2 * stored) / ceiling * 1e6 + STEPS * attention_us(point, STORAGES[BF16], ceiling)


def frame_us(point: Point, storage: Storage, ceiling: float) -> float:
    """Predict a frame over a ring in one layer: its attention; a commit writes a frame, which is little."""
    return STEPS * attention_us(point, storage, ceiling)
