"""The kernel's parameters, made from a checked call."""

import ctypes

from lowp.cache_read.call import Call
from lowp.paged.call import address, granularity


class Params(ctypes.Structure):
    """kernel.cu's Params."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ["k_cache", "v_cache", "k_out", "v_out", "k_scale", "v_scale"]),
        *((name, ctypes.c_void_p) for name in ["table", "starts", "ends", "cu_out"]),
        *((name, ctypes.c_longlong) for name in ["page_stride", "head_stride", "slot_stride"]),
        *((name, ctypes.c_longlong) for name in ["k_out_stride", "v_out_stride", "table_stride"]),
        *((name, ctypes.c_longlong) for name in ["k_scale_page", "k_scale_head", "k_scale_slot"]),
        *((name, ctypes.c_longlong) for name in ["v_scale_page", "v_scale_head", "v_scale_slot"]),
        *((name, ctypes.c_int) for name in ["sequences", "rows", "table_tokens", "page_shift"]),
        *((name, ctypes.c_int) for name in ["pages", "search_step"]),
    )


def params_of(call: Call) -> Params:
    """Make the parameters; strides of caches and outputs in bytes, of the table and the scales in elements."""
    params = Params(
        k_cache=call.k_cache.data_ptr(),
        v_cache=call.v_cache.data_ptr(),
        k_out=call.k_out.data_ptr(),
        v_out=call.v_out.data_ptr(),
        table=call.block_table.data_ptr(),
        starts=address(call.starts),
        ends=call.ends.data_ptr(),
        cu_out=call.cu_out.data_ptr(),
        k_out_stride=call.k_out.stride(0) * call.k_out.element_size(),
        v_out_stride=call.v_out.stride(0) * call.v_out.element_size(),
        table_stride=call.block_table.stride(0),
        sequences=call.sequences,
        rows=call.rows,
        table_tokens=call.table_width * call.page_size,
        page_shift=call.page_size.bit_length() - 1,
        pages=min(call.pages, 2**31 - 1),  # what an entry of the table can name
        search_step=(1 << (call.sequences - 1).bit_length()) >> 1,
        **call.cache_strides,
    )
    slot_axis, head_axis = call.axes
    token_axes = {"page": 0, "head": head_axis, "slot": slot_axis}
    axes = {"head": {"head": 0}, "channel": {"head": 0}, "token_head": token_axes}
    for name, scale in (("k_scale", call.k_scale), ("v_scale", call.v_scale)):
        setattr(params, name, address(scale))
        for stride, axis in axes.get(granularity(scale), {}).items():
            setattr(params, f"{name}_{stride}", scale.stride(axis))
    return params
