"""The checks of a call of `cache_write`: TypeError, ValueError, or NotImplementedError for what the kernel lacks."""

import torch

from lowp.cache_write.build import VALUES
from lowp.cache_write.call import Call
from lowp.paged.checks import KV_FORMATS, check_caches, check_index, check_rows, check_scale, check_static_scale

MOST_THREADS = 2**31  # a thread's number has 32 bits, past the last token too
MOST_AMAX_DIMS = 32 * VALUES  # of a row whose largest magnitude a warp computes


def check_arguments(call: Call) -> None:
    """Raise unless the kernel has the call: dtypes, shapes, strides, devices. Reads no tensor."""
    check_index("slot_mapping", call.slot_mapping, torch.int64, call.k, "k")
    for name, x in (("k", call.k), ("v", call.v)):
        check_rows(name, x, call.k, "k", call.tokens, VALUES)
    if call.v.shape[1:] != call.k.shape[1:]:
        raise ValueError(f"v has shape {tuple(call.v.shape)}; expected k's heads and head_dim, {tuple(call.k.shape)}")
    check_caches(call.k_cache, call.v_cache, call.layout, call.k, "k", heads=call.kv_heads)
    _check_scales(call)
    if call.saturated is not None:
        check_index("saturated", call.saturated, torch.int64, call.k, "k")
        if call.saturated.shape != (2,):
            raise ValueError(f"saturated has shape {tuple(call.saturated.shape)}; expected (2,): of K and of V")
    if call.rotation:
        _check_rotation(call)
    threads = call.tokens * (call.query_heads + 2 * call.kv_heads) * call.head_dim // VALUES
    if threads >= MOST_THREADS:
        raise NotImplementedError(
            f"{call.tokens} tokens are {threads} threads; this kernel has up to {MOST_THREADS - 1}"
        )


def check_entries(call: Call) -> None:
    """Raise for a slot past the cache or a position past the table. Reads CPU tensors."""
    if (call.slot_mapping >= call.cache_slots).any():
        raise ValueError(
            f"slot_mapping has slot {call.slot_mapping.max()}; expected at most {call.cache_slots - 1}: the cache has "
            f"{call.pages} pages of {call.page_size}"
        )
    if call.rotation:
        positions, rows = call.rotation.positions[: call.tokens], call.rotation.cos_sin.shape[0]
        outside = positions[(positions < 0) | (positions >= rows)]
        if len(outside):
            raise ValueError(f"positions has {outside[0]}; expected 0 to {rows - 1}: cos_sin has {rows} rows")


def _check_scales(call):
    scales = {"k_scale": call.k_scale, "v_scale": call.v_scale}
    kv_format, per_token = KV_FORMATS[call.k_cache.dtype], call.k_cache.shape[:3]
    for name, scale in scales.items():
        check_scale(name, scale, kv_format, call.k, "k")
    if any(scale is not None and scale.shape == per_token for scale in scales.values()):
        _check_computed_scales(call, kv_format)
        return
    for name, scale in scales.items():
        if scale is not None:
            check_static_scale(name, scale, kv_format, call.kv_heads, call.head_dim, per_token)


def _check_computed_scales(call, kv_format):
    """Raise unless the call can compute the scales per token and head: in int8, of K and V alike, in own memory."""
    k_scale, v_scale = call.k_scale, call.v_scale
    if kv_format.name != "int8":
        raise NotImplementedError(f"scales per token of a cache in {kv_format.name}; this kernel computes them in int8")
    if (k_scale.shape, k_scale.stride()) != (v_scale.shape, v_scale.stride()):
        raise NotImplementedError(
            f"k_scale has shape {tuple(k_scale.shape)} and strides {k_scale.stride()}, v_scale "
            f"{tuple(v_scale.shape)} and {v_scale.stride()}; this kernel computes both, of equal strides"
        )
    if any(size > 1 and stride == 0 for size, stride in zip(k_scale.shape, k_scale.stride(), strict=True)):
        raise ValueError(f"k_scale has strides {k_scale.stride()}; expected an element for each token and head")
    if call.head_dim.bit_count() != 1 or call.head_dim > MOST_AMAX_DIMS:
        raise NotImplementedError(
            f"head_dim {call.head_dim} with scales per token; this kernel computes them for powers of two up to "
            f"{MOST_AMAX_DIMS}"
        )


def _check_rotation(call):
    rotation = call.rotation
    for name, x in (("q", rotation.q), ("q_out", rotation.q_out)):
        check_rows(name, x, call.k, "k", call.tokens, VALUES)
    check_index("positions", rotation.positions, torch.int64, call.k, "k")
    if rotation.positions.shape[0] < call.tokens:
        raise ValueError(
            f"positions has shape {tuple(rotation.positions.shape)}; expected {call.tokens} entries or more"
        )
    if rotation.q.shape[2] != call.head_dim or rotation.q_out.shape != rotation.q.shape:
        raise ValueError(
            f"q has shape {tuple(rotation.q.shape)}, q_out {tuple(rotation.q_out.shape)}; expected the same, of k's "
            f"head_dim, {call.head_dim}"
        )
    cos_sin = rotation.cos_sin
    if cos_sin.dtype not in (torch.float32, call.k.dtype):
        raise TypeError(f"cos_sin has dtype {cos_sin.dtype}; expected torch.float32 or {call.k.dtype}")
    if cos_sin.dim() != 2 or not cos_sin.shape[0]:
        raise ValueError(f"cos_sin has shape {tuple(cos_sin.shape)}; expected [positions, head_dim]")
    if cos_sin.shape[1] != call.head_dim:
        raise NotImplementedError(
            f"cos_sin has rows of {cos_sin.shape[1]} for heads of {call.head_dim}; this kernel rotates whole heads"
        )
    if cos_sin.device != call.k.device:
        raise ValueError(f"cos_sin is on {cos_sin.device}; expected k's device, {call.k.device}")
    strides = cos_sin.stride()
    if strides[1] != 1 or strides[0] * cos_sin.element_size() % 16 or cos_sin.data_ptr() % 16:
        raise ValueError(f"cos_sin has strides {strides}; expected contiguous rows at multiples of 16 bytes")
