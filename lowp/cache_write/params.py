"""The kernel's parameters, made from a checked call."""

import ctypes

from lowp.cache_write.call import Call
from lowp.paged.call import address


class Params(ctypes.Structure):
    """kernel.cu's Params."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ["q", "q_out", "k", "v", "k_cache", "v_cache", "slots", "positions"]),
        *((name, ctypes.c_void_p) for name in ["cos_sin", "k_scale", "v_scale", "saturated"]),
        *((name, ctypes.c_longlong) for name in ["q_stride", "q_out_stride", "k_stride", "v_stride"]),
        *((name, ctypes.c_longlong) for name in ["page_stride", "head_stride", "slot_stride", "table_stride"]),
        *((name, ctypes.c_longlong) for name in ["cache_slots", "last_position"]),
        *((name, ctypes.c_int) for name in ["tokens", "page_shift", "k_scale_head", "v_scale_head"]),
    )


class ComputedParams(Params):
    """kernel.cu's Params of a build that computes the scales."""

    _fields_ = tuple((name, ctypes.c_longlong) for name in ["scale_page", "scale_head", "scale_slot"])


def params_type(computed_scales: bool) -> type[Params]:
    """Return the parameters' type of a build that computes the scales, or does not."""
    return ComputedParams if computed_scales else Params


def params_of(call: Call) -> Params:
    """Make the parameters; strides in bytes, of scales in floats."""
    params = params_type(call.computed_scales)(
        k=call.k.data_ptr(),
        v=call.v.data_ptr(),
        k_cache=call.k_cache.data_ptr(),
        v_cache=call.v_cache.data_ptr(),
        slots=call.slot_mapping.data_ptr(),
        k_scale=address(call.k_scale),
        v_scale=address(call.v_scale),
        saturated=address(call.saturated),
        k_stride=call.k.stride(0) * call.k.element_size(),
        v_stride=call.v.stride(0) * call.v.element_size(),
        cache_slots=call.cache_slots,
        tokens=call.tokens,
        page_shift=call.page_size.bit_length() - 1,
        k_scale_head=int(call.k_granularity == "head"),
        v_scale_head=int(call.v_granularity == "head"),
        **call.cache_strides,
    )
    if call.computed_scales:
        slot_axis, head_axis = call.axes
        params.scale_page, params.scale_head = call.k_scale.stride(0), call.k_scale.stride(head_axis)
        params.scale_slot = call.k_scale.stride(slot_axis)
    if rotation := call.rotation:
        params.q, params.q_out = rotation.q.data_ptr(), rotation.q_out.data_ptr()
        params.q_stride = rotation.q.stride(0) * rotation.q.element_size()
        params.q_out_stride = rotation.q_out.stride(0) * rotation.q_out.element_size()
        params.positions, params.cos_sin = rotation.positions.data_ptr(), rotation.cos_sin.data_ptr()
        params.table_stride = rotation.cos_sin.stride(0) * rotation.cos_sin.element_size()
        params.last_position = rotation.cos_sin.shape[0] - 1
    return params
