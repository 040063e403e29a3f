"""Decode attention with sinks: validation and dispatch."""

import math

import torch

from lowp.formats import FORMATS
from lowp.sink_decode.params import LONGEST_WINDOW, granularity, page_and_head_axis, query_tokens_of
from lowp.sink_decode.reference import reference

KV_DTYPES = {FORMATS[name].dtype: name for name in ("bf16", "fp16", "e4m3", "int8")}
PAGE_SIZES = (16, 32, 64, 128)
HEAD_DIMS = (64, 128)
LARGEST_GROUP = 16
MOST_SEQUENCES = 2**15  # the grid's y and z axes end at 65,535, and planned shares stand beside the sequences
MOST_QUERY_TOKENS = 4
MOST_COLUMNS = {64: 48, 128: 32}  # by head_dim: query heads of a KV head x query tokens
MOST_TABLE_TOKENS = 2**29 - 1  # a part's first step is tiles x parts in 31 bits, of 16 tokens and up to 64 parts
LAYOUTS = ("NHD", "HND")


def sink_decode(
    q,
    k_cache,
    v_cache,
    block_table,
    seq_lens,
    sinks,
    *,
    sm_scale,
    window_left=-1,
    k_scale=None,
    v_scale=None,
    layout,
    out=None,
    lse=None,
    workspace=None,
):
    """Attention of each sequence's last 1 to 4 tokens over a paged, quantised KV cache; `reference` has the formula.

    q: [batch, query_tokens, query_heads, head_dim], or [batch, query_heads, head_dim] for one token; bf16 or fp16;
        batch and query tokens may be strided. head_dim 64 or 128. 1 to 4 query tokens, the last positions of the
        sequence, whose keys are in the cache: token i of n sees the keys up to its own position, length - n + i.
    k_cache, v_cache: [pages, page_size, kv_heads, head_dim] (layout NHD) or [pages, kv_heads, page_size, head_dim]
        (HND), bf16, fp16, float8_e4m3fn or int8; equal strides, the last one 1: views of one tensor that holds both are
        taken without a copy. They span up to 64 GiB, the slots of a page up to 4 GiB. page_size 16, 32, 64 or 128; 1 to
        16 query heads per KV head, which times the query tokens are at most 48, or 32 with head_dim 128. With 8 bits
        and 64 dims HND is fast, [..., 2 * head_dim] of keys and values in either layout too; NHD is slower (NOTES.md).
    block_table: [batch, max_pages] int32, rows may be strided; max_pages * page_size under 2^29 tokens. Entries of
        pages that are read are from 0 to pages - 1: of another a CPU raises ValueError; a GPU does not look, and reads
        what memory it leads to or fails with an illegal address. Entries of pages behind the sequence's end, and of
        those that a window leaves out whole, may be anything.
    seq_lens: [batch] int32, tokens in the cache, at most max_pages * page_size: of more a GPU reads that many, a CPU
        raises ValueError. A query token before the first position (of a sequence shorter than the query tokens) sees
        nothing: out = 0, lse = sinks.
    sinks: [query_heads] fp32, natural log units; -inf is a softmax without sink. NaN or +inf, as of a broken
        checkpoint, makes out and lse of that head NaN, on a GPU and on a CPU.
    sm_scale: a positive float. window_left: an int, how many tokens before a query token's own it sees, -1 for all.
    k_scale, v_scale: positive fp32 tensors, stored * scale = value: None, one element, [kv_heads], or one per token
        and head in the cache's shape without head_dim (both of k_scale and v_scale then, of equal strides). int8
        needs both, and its k_scale may be [kv_heads, head_dim], one per channel, beside any v_scale.
    out: like q, contiguous; made if None. lse: q's shape without head_dim, fp32, natural log of the denominator with
        the sink in it; written if given. workspace: from `make_workspace`, for one stream at a time; made if None.

    Returns out. Lengths, table and scales are read on the device only: given out and workspace, a call allocates
    nothing, does not synchronise, and can be captured in a CUDA graph whose replays see other lengths and tables. The
    first call of a configuration (formats, scales, geometry, batch size, the table's width) may have to compile it,
    under a second (NOTES.md), and loads it: make it before the capture.
    On CPU tensors the float64 reference computes.
    Raises TypeError (dtype), ValueError (shape, stride, device) or NotImplementedError (a combination not built).
    """
    _check_query(q, sinks)
    _check_cache(q, k_cache, v_cache, layout)
    _check_table(q, block_table, seq_lens, k_cache.shape[page_and_head_axis(layout)[0]])
    _check_scales(k_cache, k_scale, v_scale, layout)
    if not 0 < sm_scale < math.inf:
        raise ValueError(f"sm_scale is {sm_scale}; expected a positive finite number")
    if not isinstance(window_left, int):
        raise TypeError(f"window_left is {window_left!r}; expected an int: -1 (no window) or a number of tokens")
    if window_left < -1:
        raise ValueError(f"window_left is {window_left}; expected -1 (no window) or a number of tokens")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    _check_outputs(q, out, lse)
    same = dict(sm_scale=sm_scale, window_left=window_left, k_scale=k_scale, v_scale=v_scale, layout=layout)
    if q.device.type == "cpu":
        _check_entries(q, k_cache, block_table, seq_lens, window_left, layout)
        exact, exact_lse = reference(q, k_cache, v_cache, block_table, seq_lens, sinks, **same)
        out.copy_(exact)
        if lse is not None:
            lse.copy_(exact_lse)
        return out
    from lowp.sink_decode import launch

    if q.shape[0]:
        launch.run(q, k_cache, v_cache, block_table, seq_lens, sinks, out=out, lse=lse, workspace=workspace, **same)
    return out


def make_workspace(batch, query_heads, kv_heads, head_dim, device, query_tokens=1):
    """Zeroed scratch memory for calls on one stream: a uint8 tensor on `device`; empty on a CPU, which needs none.

    query_heads, kv_heads, head_dim: as in sink_decode's q and caches. The calls have up to `batch` sequences of any
    length, with up to `query_tokens` query tokens each. Raises
    NotImplementedError for a GPU below sm_80.
    """
    if torch.device(device).type == "cpu":
        return torch.zeros(0, dtype=torch.uint8)
    from lowp.sink_decode import heuristic, launch

    found = launch.device_of(torch.device(device))
    size = heuristic.workspace_bytes(batch, query_heads * query_tokens, kv_heads, head_dim, found)
    return torch.zeros(size, dtype=torch.uint8, device=device)


def _check_query(q, sinks):
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"q has dtype {q.dtype}; expected torch.bfloat16 or torch.float16")
    if q.dim() not in (3, 4):
        raise ValueError(
            f"q has shape {tuple(q.shape)}; expected [batch, query_heads, head_dim] or "
            "[batch, query_tokens, query_heads, head_dim]"
        )
    if q.shape[0] > MOST_SEQUENCES:
        raise NotImplementedError(f"a batch of {q.shape[0]}; this kernel has up to {MOST_SEQUENCES}: split it")
    query_heads, head_dim = q.shape[-2:]
    if head_dim not in HEAD_DIMS:
        raise NotImplementedError(f"head_dim is {head_dim}; this kernel has {_words(HEAD_DIMS)}")
    if not 1 <= query_tokens_of(q) <= MOST_QUERY_TOKENS:
        raise NotImplementedError(
            f"{query_tokens_of(q)} query tokens a sequence; this kernel has 1 to {MOST_QUERY_TOKENS}"
        )
    if q.stride()[-2:] != (head_dim, 1) or any(stride % 8 for stride in q.stride()[:-2]) or q.data_ptr() % 16:
        raise ValueError(f"q has strides {q.stride()}; expected contiguous heads, rows at multiples of 16 bytes")
    _check_like("sinks", sinks, q, torch.float32, (query_heads,))


def _check_cache(q, k_cache, v_cache, layout):
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; expected {_words(LAYOUTS)}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.dtype not in KV_DTYPES:
            raise TypeError(f"{name} has dtype {cache.dtype}; expected {_words(KV_DTYPES)}")
        if cache.device != q.device:
            raise ValueError(f"{name} is on {cache.device}; expected q's device, {q.device}")
        if cache.dim() != 4 or cache.shape[3] != q.shape[-1]:
            raise ValueError(f"{name} has shape {tuple(cache.shape)}; expected 4 axes, the last of {q.shape[-1]}")
        in_16_bytes = [stride * cache.element_size() % 16 == 0 for stride in cache.stride()[:3]]
        if cache.stride(3) != 1 or not all(in_16_bytes) or cache.data_ptr() % 16:
            raise ValueError(
                f"{name} has strides {cache.stride()} from address {cache.data_ptr():#x}; "
                "expected a last stride of 1, the others and the address multiples of 16 bytes"
            )
    if (k_cache.dtype, k_cache.shape, k_cache.stride()) != (v_cache.dtype, v_cache.shape, v_cache.stride()):
        raise ValueError(
            f"k_cache is {k_cache.dtype} {tuple(k_cache.shape)} strides {k_cache.stride()}, v_cache is "
            f"{v_cache.dtype} {tuple(v_cache.shape)} strides {v_cache.stride()}; expected the same"
        )
    page_axis, head_axis = page_and_head_axis(layout)
    page_size, kv_heads = k_cache.shape[page_axis], k_cache.shape[head_axis]
    if page_size not in PAGE_SIZES:
        raise NotImplementedError(f"page size is {page_size} (layout {layout}); this kernel has {_words(PAGE_SIZES)}")
    query_heads, head_dim = q.shape[-2:]
    if not kv_heads or query_heads % kv_heads or not 1 <= query_heads // kv_heads <= LARGEST_GROUP:
        raise NotImplementedError(
            f"{query_heads} query heads over {kv_heads} KV heads (layout {layout}); "
            f"this kernel has whole head groups of 1 to {LARGEST_GROUP}"
        )
    columns = query_heads // kv_heads * query_tokens_of(q)
    if columns > MOST_COLUMNS[head_dim]:
        raise NotImplementedError(
            f"{query_heads // kv_heads} query heads a KV head and {query_tokens_of(q)} query tokens are {columns}; "
            f"this kernel has up to {MOST_COLUMNS[head_dim]} with head_dim {head_dim}"
        )
    slots = page_size * k_cache.stride(page_axis) * k_cache.element_size()
    if _span(k_cache) * k_cache.element_size() > 2**36 or slots > 2**32:
        raise NotImplementedError(
            f"a cache of shape {tuple(k_cache.shape)} and strides {k_cache.stride()} spans over 64 GiB, or a page's "
            "slots over 4 GiB; this kernel's offsets have 32 bits, of 16 bytes and of 1"
        )


def _check_table(q, block_table, seq_lens, page_size):
    if block_table.dim() != 2:
        raise ValueError(f"block_table has shape {tuple(block_table.shape)}; expected [batch, max_pages]")
    _check_like("block_table", block_table, q, torch.int32, (q.shape[0], block_table.shape[1]), rows_only=True)
    _check_like("seq_lens", seq_lens, q, torch.int32, (q.shape[0],))
    width = block_table.shape[1]
    if width * page_size > MOST_TABLE_TOKENS:
        raise NotImplementedError(
            f"block_table has {width} pages of {page_size} tokens a sequence; this kernel has up to {MOST_TABLE_TOKENS}"
            " tokens: give it the columns that are in use"
        )


def _check_entries(q, k_cache, block_table, seq_lens, window_left, layout):
    """Raise for a length past the table's width, or an entry out of range whose page is read. Of a CPU's tensors."""
    pages, page_size = k_cache.shape[0], k_cache.shape[page_and_head_axis(layout)[0]]
    lengths, width = seq_lens.long()[:, None], block_table.shape[1]
    if (lengths > width * page_size).any():
        raise ValueError(
            f"seq_lens has {lengths.max()} tokens; expected at most {width * page_size}: block_table has {width} pages"
        )
    first = lengths - query_tokens_of(q) - (min(window_left, LONGEST_WINDOW) if window_left >= 0 else LONGEST_WINDOW)
    begin = torch.arange(width) * page_size
    read = (begin < lengths) & (begin + page_size > first)
    wrong = read & ((block_table < 0) | (block_table >= pages))
    if wrong.any():
        b, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"block_table[{b}, {column}] is {block_table[b, column]}, of a page in use; expected 0 to {pages - 1}"
        )


def _check_scales(k_cache, k_scale, v_scale, layout):
    per_token = tuple(k_cache.shape[:3])
    kv_heads = per_token[page_and_head_axis(layout)[1]]
    per_channel = (kv_heads, k_cache.shape[3])
    if k_cache.dtype == torch.int8 and (k_scale is None or v_scale is None):
        raise ValueError("an int8 cache without k_scale or v_scale; expected both")
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is None:
            continue
        if not isinstance(scale, torch.Tensor) or scale.dtype != torch.float32:
            got = scale.dtype if isinstance(scale, torch.Tensor) else type(scale).__name__
            raise TypeError(f"{name} is {got}; expected None or an fp32 tensor")
        if scale.device != k_cache.device:
            raise ValueError(f"{name} is on {scale.device}; expected the cache's device, {k_cache.device}")
        contiguous = scale.numel() == 1 or (tuple(scale.shape) in ((kv_heads,), per_channel) and scale.is_contiguous())
        if not contiguous and tuple(scale.shape) != per_token:
            raise ValueError(
                f"{name} has shape {tuple(scale.shape)}; expected one element, ({kv_heads},) or {per_channel} "
                f"contiguous, or {per_token}"
            )
    of_k, of_v = granularity(k_scale), granularity(v_scale)
    if of_v == "channel" or (of_k == "channel" and k_cache.dtype != torch.int8):
        whose = "V" if of_v == "channel" else f"a K in {KV_DTYPES[k_cache.dtype]}"
        raise NotImplementedError(f"scales per channel of {whose}; this kernel has them of a K in int8")
    if of_k == "channel" and k_scale.data_ptr() % 16:
        raise ValueError("k_scale is not aligned; expected an address that is a multiple of 16 bytes")
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


def _check_outputs(q, out, lse):
    _check_like("out", out, q, q.dtype, tuple(q.shape))
    if out.data_ptr() % 16:
        raise ValueError("out is not aligned; expected an address that is a multiple of 16 bytes")
    if lse is not None:
        _check_like("lse", lse, q, torch.float32, tuple(q.shape[:-1]))


def _check_like(name, tensor, q, dtype, shape, rows_only=False):
    """Raise unless `tensor` has this dtype and shape, is on q's device and contiguous (in rows)."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    if tensor.device != q.device:
        raise ValueError(f"{name} is on {tensor.device}; expected q's device, {q.device}")
    contiguous = tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 if rows_only else tensor.is_contiguous()
    if not contiguous:
        raise ValueError(f"{name} has strides {tensor.stride()}; expected contiguous{' rows' if rows_only else ''}")


def _span(tensor):
    """Elements from a tensor's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _words(values):
    return ", ".join(str(value) for value in values)
