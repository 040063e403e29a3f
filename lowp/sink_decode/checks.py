"""The checks of a call of `sink_decode`: TypeError, ValueError, or NotImplementedError for what the kernel lacks."""

import math

import torch

from lowp.paged.checks import KV_FORMATS, check_caches, check_scale_tensor, check_static_scale, check_table
from lowp.sink_decode.call import Call
from lowp.sink_decode.params import LONGEST_WINDOW

PAGE_SIZES = (16, 32, 64, 128)
HEAD_DIMS = (64, 128)
LARGEST_GROUP = 16
MOST_SEQUENCES = 2**15  # the grid's y and z axes end at 65,535, and planned KV splits stand beside the sequences
MOST_QUERY_TOKENS = 4
MOST_COLUMNS = {64: 48, 128: 32}  # by head_dim: query heads of a KV head x query tokens
MOST_TABLE_TOKENS = 2**29 - 1  # a split's first step is tiles x splits in 31 bits, of 16 tokens and up to 64 splits


def check_arguments(call: Call) -> None:
    """Raise unless the kernel has the call: dtypes, shapes, strides, devices, numbers. Reads no tensor."""
    _check_query(call)
    _check_cache(call)
    _check_table(call)
    _check_scales(call)
    if not 0 < call.sm_scale < math.inf:
        raise ValueError(f"sm_scale is {call.sm_scale}; expected a positive finite number")
    if not isinstance(call.window_left, int):
        raise TypeError(f"window_left is {call.window_left!r}; expected an int: -1 (no window) or a number of tokens")
    if call.window_left < -1:
        raise ValueError(f"window_left is {call.window_left}; expected -1 (no window) or a number of tokens")
    if call.longest is not None and (not isinstance(call.longest, int) or call.longest < 1):
        raise ValueError(f"longest is {call.longest!r}; expected None or a positive number of tokens")
    _check_outputs(call)


def check_entries(call: Call) -> None:
    """Raise for a length past the table's width, or an entry out of range whose page is read. Reads CPU tensors."""
    table, pages, page_size = call.block_table, call.k_cache.shape[0], call.page_size
    lengths, width = call.seq_lens.long()[:, None], call.table_width
    if (lengths > width * page_size).any():
        raise ValueError(
            f"seq_lens has {lengths.max()} tokens; expected at most {width * page_size}: block_table has {width} pages"
        )
    window = LONGEST_WINDOW if call.window_left < 0 else min(call.window_left, LONGEST_WINDOW)
    first = lengths - call.query_tokens - window
    start = torch.arange(width) * page_size
    read = (start < lengths) & (start + page_size > first)
    wrong = read & ((table < 0) | (table >= pages))
    if wrong.any():
        b, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"block_table[{b}, {column}] is {table[b, column]}, of a page in use; expected 0 to {pages - 1}"
        )


def _check_query(call):
    q = call.q
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"q has dtype {q.dtype}; expected torch.bfloat16 or torch.float16")
    if q.dim() not in (3, 4):
        raise ValueError(
            f"q has shape {tuple(q.shape)}; expected [batch, query_heads, head_dim] or "
            "[batch, query_tokens, query_heads, head_dim]"
        )
    if call.batch > MOST_SEQUENCES:
        raise NotImplementedError(f"a batch of {call.batch}; this kernel has up to {MOST_SEQUENCES}: split it")
    head_dim, query_tokens, strides = call.head_dim, call.query_tokens, q.stride()
    if head_dim not in HEAD_DIMS:
        raise NotImplementedError(f"head_dim is {head_dim}; this kernel has {_words(HEAD_DIMS)}")
    if not 1 <= query_tokens <= MOST_QUERY_TOKENS:
        raise NotImplementedError(f"{query_tokens} query tokens a sequence; this kernel has 1 to {MOST_QUERY_TOKENS}")
    if strides[-2:] != (head_dim, 1) or any(stride % 8 for stride in strides[:-2]) or q.data_ptr() % 16:
        raise ValueError(f"q has strides {strides}; expected contiguous heads, rows at multiples of 16 bytes")
    _check_like("sinks", call.sinks, q, torch.float32, (call.query_heads,))


def _check_cache(call):
    k_cache, layout, head_dim = call.k_cache, call.layout, call.head_dim
    check_caches(k_cache, call.v_cache, layout, call.q, "q", heads=None)
    page_size, kv_heads, query_heads, query_tokens = call.page_size, call.kv_heads, call.query_heads, call.query_tokens
    if page_size not in PAGE_SIZES:
        raise NotImplementedError(f"page size is {page_size} (layout {layout}); this kernel has {_words(PAGE_SIZES)}")
    if not kv_heads or query_heads % kv_heads or not 1 <= query_heads // kv_heads <= LARGEST_GROUP:
        raise NotImplementedError(
            f"{query_heads} query heads over {kv_heads} KV heads (layout {layout}); "
            f"this kernel has whole head groups of 1 to {LARGEST_GROUP}"
        )
    group = query_heads // kv_heads
    if group * query_tokens > MOST_COLUMNS[head_dim]:
        raise NotImplementedError(
            f"{group} query heads a KV head and {query_tokens} query tokens are {group * query_tokens}; "
            f"this kernel has up to {MOST_COLUMNS[head_dim]} with head_dim {head_dim}"
        )
    slots = page_size * call.cache_strides["slot_stride"]
    if _span(k_cache) * k_cache.element_size() > 2**36 or slots > 2**32:
        raise NotImplementedError(
            f"a cache of shape {tuple(k_cache.shape)} and strides {k_cache.stride()} spans over 64 GiB, or a page's "
            "slots over 4 GiB; this kernel's offsets have 32 bits, of 16 bytes and of 1"
        )


def _check_table(call):
    check_table(call.block_table, call.batch, call.page_size, MOST_TABLE_TOKENS, call.q, "q")
    _check_like("seq_lens", call.seq_lens, call.q, torch.int32, (call.batch,))


def _check_scales(call):
    k_cache, k_scale, v_scale = call.k_cache, call.k_scale, call.v_scale
    if k_cache.dtype == torch.int8 and (k_scale is None or v_scale is None):
        raise ValueError("an int8 cache without k_scale or v_scale; expected both")
    if k_scale is None and v_scale is None:
        return
    per_token = tuple(k_cache.shape[:3])
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is None:
            continue
        check_scale_tensor(name, scale, call.q, "q")
        if tuple(scale.shape) != per_token:
            check_static_scale(name, scale, KV_FORMATS[k_cache.dtype], call.kv_heads, call.head_dim, per_token)
    of_k, of_v = call.k_granularity, call.v_granularity
    by_token = of_k != "channel" and "token_head" in (of_k, of_v)
    if by_token and (of_k != of_v or k_scale.stride() != v_scale.stride()):
        raise NotImplementedError(
            f"scales of K: {of_k}, of V: {of_v}, or of unequal strides; this kernel has scales per token and head for "
            "both, of equal strides, or for V beside a K per channel"
        )
    if of_v == "token_head" and _span(v_scale) > 2**31:
        raise NotImplementedError(
            f"v_scale of shape {tuple(v_scale.shape)} and strides {v_scale.stride()} spans over 8 GiB; this kernel's "
            "offsets of scales have 31 bits, of 4 bytes"
        )


def _check_outputs(call):
    q, out, lse = call.q, call.out, call.lse
    _check_like("out", out, q, q.dtype, q.shape)
    if out.data_ptr() % 16:
        raise ValueError("out is not aligned; expected an address that is a multiple of 16 bytes")
    if lse is not None:
        _check_like("lse", lse, q, torch.float32, q.shape[:-1])


def _check_like(name, tensor, q, dtype, shape):
    """Raise unless `tensor` has this dtype and shape, is on q's device and contiguous."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {tuple(shape)}")
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}; expected q's device, {q.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; expected contiguous")


def _span(tensor):
    """Elements from a tensor's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _words(values):
    return ", ".join(str(value) for value in values)
