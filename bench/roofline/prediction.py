"""The roofline of decode: the bytes that a step must read, over the memory's bandwidth. Needs no GPU and no weights.

A step makes one token for each of `batch` requests. It reads the weights once, of the experts those that some token
is routed to, and each request's KV cache. Writing, computing and launching count as nothing, so a predicted rate
is a limit. Bytes are the whole model's: for several GPUs, give the sum of their bandwidths.
"""

from bisect import bisect_left
from typing import NamedTuple

from bench.roofline.shape import ModelShape, names, of_model
from vllm_launch.model import Model
from vllm_launch.resolved import Resolved, canonical_kv_dtype

# Bytes of a stored value, in full-attention and in sliding-window layers; one scale a tensor counts as nothing.
KV_FORMATS = {"bf16": (2, 2), "fp8": (1, 1), "fp8-skip-sliding": (1, 2)}
GAINS = (1.01, 1.05, 1.10)  # FP8 pays from here: rates over BF16's
SMALL_WEIGHTS = 100e6  # bytes; fewer are read faster than a step's kernels are launched, even at 273 GB/s


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
    full, sliding = KV_FORMATS[kv_format]
    windowed = min(context, shape.window)
    return batch * (shape.full_values * context * full + shape.sliding_values * windowed * sliding)


def predict(shape: ModelShape, kv_format: str, context: int, batch: int, bandwidth: float) -> Point:
    """A decode step at `context` tokens of cache a request, on memory of `bandwidth` bytes/s."""
    weights, cache = weight_bytes(shape, batch), kv_bytes(shape, kv_format, context, batch)
    step_s = (weights + cache) / bandwidth
    return Point(kv_format, batch, context, weights, cache, step_s, batch / step_s)


def predict_measured(model: Model, resolved: Resolved, context: int, batch: int, bandwidth: float) -> Point | None:
    """The prediction beside a measured rate, from its result's model and its row's resolved settings.

    None for a model that no shipped config describes, and for a KV format that is not in KV_FORMATS.
    """
    shape, kv_format = of_model(model), _kv_format(resolved)
    return predict(shape, kv_format, context, batch, bandwidth) if shape and kv_format else None


def _kv_format(resolved: Resolved) -> str | None:
    dtype = canonical_kv_dtype(resolved.kv_cache_dtype, resolved.model_dtype)
    if dtype in ("bfloat16", "float16"):
        return "bf16"
    if dtype not in ("fp8_e4m3", "fp8_e5m2"):
        return None
    return {(): "fp8", ("sliding_window",): "fp8-skip-sliding"}.get(tuple(resolved.kv_skip_layers))


def gain_by_bytes(model: Model, resolved: Resolved, base: Resolved, context: int, batch: int) -> float | None:
    """The predicted rate over that of `base`, at any bandwidth; None where one of them is not counted."""
    points = [predict_measured(model, settings, context, batch, 1) for settings in (resolved, base)]
    return points[0].tokens_s / points[1].tokens_s if all(points) else None


def why_not(model: Model, machine_family: str) -> str | None:
    """Return why bytes do not limit the decode rate; None if they do."""
    if machine_family == "cpu":
        return "on a CPU arithmetic, not the bytes of the KV cache, limits the decode rate"
    if model.weight_bytes < SMALL_WEIGHTS:
        return f"{model.weight_bytes / 1e6:.1f} MB of weights: launches, not bytes, limit the decode rate"
    if of_model(model) is None:
        return f"the bytes of {model.name} with these sizes are not counted, only those of {', '.join(names())}"
    return None


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
