"""The roofline of decode: the bytes that a step must read, over the memory's bandwidth. Needs no GPU and no weights.

A step makes one token for each of `batch` requests. It reads the weights once, of the experts those that some token
is routed to, and each request's KV cache. Writing, computing and launching count as nothing, so a predicted rate
is a limit. Bytes are the whole model's: for several GPUs, give the sum of their bandwidths.
"""

from bisect import bisect_left
from typing import NamedTuple

from bench.roofline.shape import ModelShape

# Bytes of a stored value, in full-attention and in sliding-window layers; one scale a tensor counts as nothing.
KV_FORMATS = {"bf16": (2, 2), "fp8": (1, 1), "fp8-skip-sliding": (1, 2)}
# As well: int8 with a scale of 4 bytes for the 64 values of a token and head of gpt-oss.
VALUE_BYTES = KV_FORMATS | {"int8": (1 + 4 / 64, 1 + 4 / 64)}
GAINS = (1.01, 1.05, 1.10)  # FP8 pays from here: rates over BF16's


class Point(NamedTuple):
    """One decode step: what it reads, its time, and the rate over all requests of the batch (tokens/s)."""

    kv_format: str
    batch: int
    context: int
    weight_bytes: float
    kv_bytes: float
    step_s: float
    tokens_s: float


def active_experts(shape: ModelShape, batch: int) -> float:
    """Experts of a layer that a step reads: E (1 - (1 - k/E)^batch), k of E a token, expected, routing uniform."""
    return shape.experts * (1 - (1 - shape.experts_per_token / shape.experts) ** batch)


def weight_bytes(shape: ModelShape, batch: int) -> float:
    """Weights that a step reads, in bytes: all but the experts once, the active experts, an embedding row a token."""
    once = shape.attention_bytes + shape.other_bytes + shape.head_bytes
    return once + active_experts(shape, batch) * shape.expert_bytes + batch * shape.row_bytes


def kv_bytes(shape: ModelShape, kv_format: str, context: int, batch: int) -> float:
    """KV cache that a step reads, in bytes: `context` tokens a request in full layers, at most the window in others."""
    full, sliding = VALUE_BYTES[kv_format]
    windowed = min(context, shape.window)
    return batch * (shape.full_values * context * full + shape.sliding_values * windowed * sliding)


def predict(shape: ModelShape, kv_format: str, context: int, batch: int, bandwidth: float) -> Point:
    """A decode step at `context` tokens of cache a request, on memory of `bandwidth` bytes/s."""
    weights, cache = weight_bytes(shape, batch), kv_bytes(shape, kv_format, context, batch)
    step_s = (weights + cache) / bandwidth
    return Point(kv_format, batch, context, weights, cache, step_s, batch / step_s)


def gain(shape: ModelShape, kv_format: str, context: int, batch: int) -> float:
    """Predicted rate over that of a BF16 cache: bytes of a step over bytes of a step, at any bandwidth."""
    weights = weight_bytes(shape, batch)
    of_bf16 = weights + kv_bytes(shape, "bf16", context, batch)
    return of_bf16 / (weights + kv_bytes(shape, kv_format, context, batch))


def pays_from(shape: ModelShape, kv_format: str, least: float, batch: int) -> int | None:
    """The smallest context (tokens) where gain() is at least `least`; None if the model's longest is too short."""
    contexts = range(1, shape.max_context + 1)  # gain() never falls with the context
    index = bisect_left(contexts, least, key=lambda context: gain(shape, kv_format, context, batch))
    return contexts[index] if index < len(contexts) else None
