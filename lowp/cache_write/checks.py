"""The checks of a call of `cache_write`: TypeError, ValueError, or NotImplementedError for what the kernel lacks."""

import torch

from lowp.cache_write.build import VALUES
from lowp.cache_write.call import Call
from lowp.cache_write.reference import FORMAT_NAMES
from lowp.formats.table import FORMATS
from lowp.paged.layouts import AXES

INPUT_DTYPES = (torch.bfloat16, torch.float16)
MOST_THREADS = 2**31  # a thread's number has 32 bits, past the last token too


def check_arguments(call: Call) -> None:
    """Raise unless the kernel has the call: dtypes, shapes, strides, devices. Reads no tensor."""
    _check_index("slot_mapping", call.slot_mapping, call.k.device)
    _check_rows("k", call.k, call)
    _check_rows("v", call.v, call)
    if call.v.shape[1:] != call.k.shape[1:]:
        raise ValueError(f"v has shape {tuple(call.v.shape)}; expected k's heads and head_dim, {tuple(call.k.shape)}")
    _check_cache(call)
    for name, scale in (("k_scale", call.k_scale), ("v_scale", call.v_scale)):
        _check_scale(name, scale, call)
    if call.saturated is not None:
        _check_index("saturated", call.saturated, call.k.device)
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
            f"{call.k_cache.shape[0]} pages of {call.page_size}"
        )
    if call.rotation:
        positions, rows = call.rotation.positions[: call.tokens], call.rotation.cos_sin.shape[0]
        outside = positions[(positions < 0) | (positions >= rows)]
        if len(outside):
            raise ValueError(f"positions has {outside[0]}; expected 0 to {rows - 1}: cos_sin has {rows} rows")


def _check_rows(name, x, call):
    """Raise unless x is [tokens or more, heads, head_dim] as the kernel reads it."""
    if x.dtype not in INPUT_DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; expected torch.bfloat16 or torch.float16")
    if x.dtype != call.k.dtype:
        raise TypeError(f"{name} has dtype {x.dtype}; expected k's, {call.k.dtype}")
    if x.dim() != 3 or x.shape[0] < call.tokens or not x.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected [tokens, heads, head_dim], {call.tokens} tokens or more"
        )
    if x.device != call.k.device:
        raise ValueError(f"{name} is on {x.device}; expected k's device, {call.k.device}")
    head_dim = x.shape[2]
    if not head_dim or head_dim % VALUES:
        raise NotImplementedError(f"{name} has head_dim {head_dim}; this kernel has multiples of {VALUES}")
    (tokens, heads, _), strides = x.shape, x.stride()
    contiguous = strides[2] == 1 and (heads == 1 or strides[1] == head_dim)
    if not contiguous or (tokens > 1 and strides[0] * x.element_size() % 16) or x.data_ptr() % 16:
        raise ValueError(
            f"{name} has strides {strides} from address {x.data_ptr():#x}; expected contiguous heads, tokens at "
            "multiples of 16 bytes"
        )


def _check_cache(call):
    k_cache, v_cache = call.k_cache, call.v_cache
    if call.layout not in AXES:
        raise ValueError(f"layout is {call.layout!r}; expected {', '.join(AXES)}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dtype not in FORMAT_NAMES:
            raise TypeError(f"{name} has dtype {cache.dtype}; expected {', '.join(map(str, FORMAT_NAMES))}")
        if cache.device != call.k.device:
            raise ValueError(f"{name} is on {cache.device}; expected k's device, {call.k.device}")
        if cache.dim() != 4 or (cache.shape[call.axes[1]], cache.shape[3]) != (call.kv_heads, call.head_dim):
            raise ValueError(
                f"{name} has shape {tuple(cache.shape)} (layout {call.layout}); expected 4 axes with k's "
                f"{call.kv_heads} heads of {call.head_dim}"
            )
        strides, size = cache.stride(), cache.element_size()
        if strides[3] != 1 or any(stride * size % 16 for stride in strides[:3]) or cache.data_ptr() % 16:
            raise ValueError(
                f"{name} has strides {strides} from address {cache.data_ptr():#x}; "
                "expected a last stride of 1, the others and the address multiples of 16 bytes"
            )
    if (k_cache.dtype, k_cache.shape, k_cache.stride()) != (v_cache.dtype, v_cache.shape, v_cache.stride()):
        raise ValueError(
            f"k_cache is {k_cache.dtype} {tuple(k_cache.shape)} strides {k_cache.stride()}, v_cache is "
            f"{v_cache.dtype} {tuple(v_cache.shape)} strides {v_cache.stride()}; expected the same"
        )
    if call.page_size.bit_count() != 1:
        raise NotImplementedError(f"page size is {call.page_size}; this kernel has powers of two")


def _check_scale(name, scale, call):
    kv_format = FORMATS[FORMAT_NAMES[call.k_cache.dtype]]
    if scale is None:
        if "none" not in kv_format.granularities:
            raise ValueError(f"{name} is None with a cache in {kv_format.name}; expected an fp32 tensor")
        return
    if "tensor" not in kv_format.granularities:
        raise NotImplementedError(
            f"{name} is given with a cache in {kv_format.name}, which has no scales; expected None"
        )
    if not isinstance(scale, torch.Tensor) or scale.dtype != torch.float32:
        kind = scale.dtype if isinstance(scale, torch.Tensor) else type(scale).__name__
        raise TypeError(f"{name} is {kind}; expected None or an fp32 tensor")
    if scale.device != call.k.device:
        raise ValueError(f"{name} is on {scale.device}; expected k's device, {call.k.device}")
    if scale.numel() != 1 and not (scale.shape == (call.kv_heads,) and scale.is_contiguous()):
        raise ValueError(
            f"{name} has shape {tuple(scale.shape)}; expected one element, or ({call.kv_heads},) contiguous"
        )


def _check_rotation(call):
    rotation = call.rotation
    _check_rows("q", rotation.q, call)
    _check_rows("q_out", rotation.q_out, call)
    _check_index("positions", rotation.positions, call.k.device)
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


def _check_index(name, tensor, device):
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected torch.int64")
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}; expected one contiguous axis"
        )
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; expected k's device, {device}")
