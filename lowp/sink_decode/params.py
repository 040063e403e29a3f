"""The kernel's parameters, and what they are from: tensors that `api` has checked."""

import ctypes

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


def granularity(scale) -> str:
    """none, tensor, head, token_head or channel, by a valid scale's shape."""
    if scale is None or scale.numel() == 1:
        return "none" if scale is None else "tensor"
    return {1: "head", 2: "channel", 3: "token_head"}[scale.dim()]


def page_and_head_axis(layout: str) -> tuple[int, int]:
    """The axes of a cache that count a page's slots and the KV heads."""
    return (1, 2) if layout == "NHD" else (2, 1)


def query_tokens_of(q) -> int:
    """Query tokens a sequence: of q's 4 axes the second; 3 axes have one."""
    return q.shape[1] if q.dim() == 4 else 1


def params_of(
    q, k_cache, v_cache, block_table, seq_lens, sinks, sm_scale, window_left, k_scale, v_scale, layout, out, lse
) -> Params:
    """All parameters but those of planned splits."""
    page_axis, head_axis = page_and_head_axis(layout)
    page_stride, head_stride, slot_stride = (
        k_cache.stride(axis) * k_cache.element_size() // 16 for axis in (0, head_axis, page_axis)
    )
    params = Params(
        q=q.data_ptr(),
        k=k_cache.data_ptr(),
        v=v_cache.data_ptr(),
        table=block_table.data_ptr(),
        lengths=seq_lens.data_ptr(),
        sinks=sinks.data_ptr(),
        k_scale=None if k_scale is None else k_scale.data_ptr(),
        v_scale=None if v_scale is None else v_scale.data_ptr(),
        out=out.data_ptr(),
        lse=None if lse is None else lse.data_ptr(),
        sm_scale=sm_scale,
        batch=q.shape[0],
        group=q.shape[-2] // k_cache.shape[head_axis],
        q_stride=q.stride(0) * q.element_size(),
        table_stride=block_table.stride(0),
        table_width=block_table.shape[1],
        page_shift=(k_cache.shape[page_axis] // 16).bit_length() - 1,
        page_stride=page_stride,
        head_stride=head_stride,
        slot_stride=slot_stride,
        k_scale_head=int(granularity(k_scale) == "head"),
        v_scale_head=int(granularity(v_scale) == "head"),
        window_left=min(window_left, LONGEST_WINDOW),
        q_token_stride=q.stride(1) * q.element_size() if q.dim() == 4 else 0,
    )
    if granularity(v_scale) == "token_head":
        params.scale_page, params.scale_head, params.scale_slot = (
            v_scale.stride(axis) for axis in (0, head_axis, page_axis)
        )
    return params
