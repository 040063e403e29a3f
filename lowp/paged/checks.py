"""Checks that several kernels of the paged cache share: TypeError, ValueError, NotImplementedError.

`rows` is a tensor [tokens, heads, head_dim] of the call, called `rows_name`, which the others have to fit.
"""

import torch

from lowp.formats.table import FORMATS, Format
from lowp.paged.layouts import AXES, page_and_head_axis

ROW_DTYPES = (torch.bfloat16, torch.float16)
KV_FORMATS = {FORMATS[name].dtype: FORMATS[name] for name in ("bf16", "fp16", "e4m3", "int8")}


def check_rows(name: str, x: torch.Tensor, rows: torch.Tensor, rows_name: str, tokens: int, multiple: int) -> None:
    """Raise unless x is [tokens or more, heads, head_dim], heads contiguous. multiple: what divides head_dim."""
    if x.dtype not in ROW_DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; expected torch.bfloat16 or torch.float16")
    if x.dtype != rows.dtype:
        raise TypeError(f"{name} has dtype {x.dtype}; expected {rows_name}'s, {rows.dtype}")
    if x.dim() != 3 or x.shape[0] < tokens or not x.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected [tokens, heads, head_dim], {tokens} tokens or more"
        )
    if x.device != rows.device:
        raise ValueError(f"{name} is on {x.device}; expected {rows_name}'s device, {rows.device}")
    (count, heads, head_dim), strides = x.shape, x.stride()
    if not head_dim or head_dim % multiple:
        raise NotImplementedError(f"{name} has head_dim {head_dim}; this kernel has multiples of {multiple}")
    contiguous = strides[2] == 1 and (heads == 1 or strides[1] == head_dim)
    if not contiguous or (count > 1 and strides[0] * x.element_size() % 16) or x.data_ptr() % 16:
        raise ValueError(
            f"{name} has strides {strides} from address {x.data_ptr():#x}; expected contiguous heads, tokens at "
            "multiples of 16 bytes"
        )


def check_caches(
    k_cache: torch.Tensor, v_cache: torch.Tensor, layout: str, rows: torch.Tensor, rows_name: str, *, heads: int | None
) -> None:
    """Raise unless the caches are alike, have `heads` KV heads (None: any) of rows' head_dim, pages of a power of two,
    and lie at multiples of 16 bytes.
    """
    if layout not in AXES:
        raise ValueError(f"layout is {layout!r}; expected {', '.join(AXES)}")
    slot_axis, head_axis = page_and_head_axis(layout)
    head_dim = rows.shape[-1]
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dtype not in KV_FORMATS:
            raise TypeError(f"{name} has dtype {cache.dtype}; expected {', '.join(map(str, KV_FORMATS))}")
        if cache.device != rows.device:
            raise ValueError(f"{name} is on {cache.device}; expected {rows_name}'s device, {rows.device}")
        if cache.dim() != 4 or cache.shape[3] != head_dim or heads not in (None, cache.shape[head_axis]):
            raise ValueError(
                f"{name} has shape {tuple(cache.shape)} (layout {layout}); expected 4 axes with {rows_name}'s "
                f"{'' if heads is None else f'{heads} heads of '}head_dim {head_dim}"
            )
    _check_alike(k_cache, v_cache)
    if k_cache.shape[slot_axis].bit_count() != 1:
        raise NotImplementedError(f"page size is {k_cache.shape[slot_axis]}; this kernel has powers of two")


def _check_alike(k_cache, v_cache):
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
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


def check_scale(name: str, scale: torch.Tensor | None, kv_format: Format, rows: torch.Tensor, rows_name: str) -> None:
    """Raise unless the format has scales, or needs none, and the scale passes `check_scale_tensor`."""
    if scale is None:
        if "none" not in kv_format.granularities:
            raise ValueError(f"{name} is None with a cache in {kv_format.name}; expected an fp32 tensor")
        return
    if "tensor" not in kv_format.granularities:
        raise NotImplementedError(
            f"{name} is given with a cache in {kv_format.name}, which has no scales; expected None"
        )
    check_scale_tensor(name, scale, rows, rows_name)


def check_scale_tensor(name: str, scale: torch.Tensor, rows: torch.Tensor, rows_name: str) -> None:
    """Raise unless the scale is an fp32 tensor on rows' device."""
    if not isinstance(scale, torch.Tensor) or scale.dtype != torch.float32:
        kind = scale.dtype if isinstance(scale, torch.Tensor) else type(scale).__name__
        raise TypeError(f"{name} is {kind}; expected None or an fp32 tensor")
    if scale.device != rows.device:
        raise ValueError(f"{name} is on {scale.device}; expected {rows_name}'s device, {rows.device}")


def check_static_scale(
    name: str, scale: torch.Tensor, kv_format: Format, kv_heads: int, head_dim: int, per_token: tuple[int, ...]
) -> None:
    """Raise unless the scale is one element, one for each KV head, or for each channel of a K in int8.

    per_token: the shape of scales per token and head, which the caller checks.
    """
    if scale.numel() == 1:
        return
    per_channel = (kv_heads, head_dim)
    if tuple(scale.shape) not in ((kv_heads,), per_channel) or not scale.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(scale.shape)}; expected one element, ({kv_heads},) or {per_channel} contiguous, "
            f"or {tuple(per_token)}"
        )
    if scale.dim() == 2 and (name != "k_scale" or "channel" not in kv_format.granularities):
        raise NotImplementedError(
            f"{name} has a scale for each channel of a cache in {kv_format.name}; this kernel has them of a K in int8"
        )
    if scale.dim() == 2 and scale.data_ptr() % 16:
        raise ValueError(f"{name} is not aligned; expected an address that is a multiple of 16 bytes")


def check_index(name: str, tensor: torch.Tensor, dtype: torch.dtype, rows: torch.Tensor, rows_name: str) -> None:
    """Raise unless the tensor is one contiguous axis of the dtype on rows' device."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {dtype}")
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}; expected one contiguous axis"
        )
    if tensor.device != rows.device:
        raise ValueError(f"{name} is on {tensor.device}; expected {rows_name}'s device, {rows.device}")


def check_table(
    table: torch.Tensor, sequences: int, page_size: int, most_tokens: int, rows: torch.Tensor, rows_name: str
) -> None:
    """Raise unless the block table is [sequences, pages] int32 on rows' device, each row contiguous, and has up to
    `most_tokens` tokens a sequence.
    """
    if table.dtype != torch.int32:
        raise TypeError(f"block_table has dtype {table.dtype}; expected torch.int32")
    if table.device != rows.device:
        raise ValueError(f"block_table is on {table.device}; expected {rows_name}'s device, {rows.device}")
    if table.dim() != 2 or table.shape[0] != sequences or (table.shape[1] > 1 and table.stride(1) != 1):
        raise ValueError(
            f"block_table has shape {tuple(table.shape)} and strides {table.stride()}; expected [{sequences}, "
            "max_pages] with contiguous rows"
        )
    if table.shape[1] * page_size > most_tokens:
        raise NotImplementedError(
            f"block_table has {table.shape[1]} pages of {page_size} tokens a sequence; this kernel has up to "
            f"{most_tokens} tokens: give it the columns that are in use"
        )
