"""The kernel's parameters, made from a checked call."""

import ctypes

from lowp.paged.call import address
from lowp.sink_decode.call import Call

LONGEST_WINDOW = 2**30  # more than any length, and still an int32 beside one


class Params(ctypes.Structure):
    """config.cuh's Params."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ["q", "k", "v", "table", "lengths", "sinks", "k_scale", "v_scale"]),
        *((name, ctypes.c_void_p) for name in ["out", "lse", "partials", "arrived"]),
        ("sm_scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ["batch", "group", "q_stride", "table_stride", "table_width", "page_shift"]),
        *((name, ctypes.c_uint) for name in ["page_stride", "head_stride", "slot_stride"]),
        *((name, ctypes.c_int) for name in ["k_scale_head", "v_scale_head", "scale_page", "scale_head", "scale_slot"]),
        ("window_left", ctypes.c_int),
        ("splits", ctypes.c_int),
        ("q_token_stride", ctypes.c_int),
    )


def params_of(call: Call) -> Params:
    """Make all parameters but those of planned KV splits."""
    q, (slot_axis, head_axis) = call.q, call.axes
    params = Params(
        q=q.data_ptr(),
        k=call.k_cache.data_ptr(),
        v=call.v_cache.data_ptr(),
        table=call.block_table.data_ptr(),
        lengths=call.seq_lens.data_ptr(),
        sinks=call.sinks.data_ptr(),
        k_scale=address(call.k_scale),
        v_scale=address(call.v_scale),
        out=call.out.data_ptr(),
        lse=address(call.lse),
        sm_scale=call.sm_scale,
        batch=call.batch,
        group=call.group,
        q_stride=q.stride(0) * q.element_size(),
        table_stride=call.block_table.stride(0),
        table_width=call.table_width,
        page_shift=(call.page_size // 16).bit_length() - 1,
        k_scale_head=int(call.k_granularity == "head"),
        v_scale_head=int(call.v_granularity == "head"),
        window_left=min(call.window_left, LONGEST_WINDOW),
        q_token_stride=q.stride(1) * q.element_size() if q.dim() == 4 else 0,
        **{name: stride // 16 for name, stride in call.cache_strides.items()},
    )
    if call.v_granularity == "token_head":
        params.scale_page, params.scale_head, params.scale_slot = (
            call.v_scale.stride(axis) for axis in (0, head_axis, slot_axis)
        )
    return params
