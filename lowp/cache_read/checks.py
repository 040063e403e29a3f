"""The checks of a call of `cache_read`: TypeError, ValueError, or NotImplementedError for what the kernel lacks."""

import torch

from lowp.cache_read.build import MULTIPLE, VALUES
from lowp.cache_read.call import Call
from lowp.paged.checks import (
    KV_FORMATS,
    check_caches,
    check_index,
    check_rows,
    check_scale,
    check_static_scale,
    check_table,
)

MOST_TABLE_TOKENS = 2**31 - 1  # a token's number has 31 bits
MOST_THREADS = 2**31  # a thread's number has 32 bits, past the last row too


def check_arguments(call: Call) -> None:
    """Raise unless the kernel has the call: dtypes, shapes, strides, devices. Reads no tensor."""
    for name, x in (("k_out", call.k_out), ("v_out", call.v_out)):
        check_rows(name, x, call.k_out, "k_out", 0, MULTIPLE)
    if call.v_out.shape != call.k_out.shape:
        raise ValueError(f"v_out has shape {tuple(call.v_out.shape)}; expected k_out's, {tuple(call.k_out.shape)}")
    check_caches(call.k_cache, call.v_cache, call.layout, call.k_out, "k_out", heads=call.kv_heads)
    if not call.pages:
        raise ValueError("the caches have no pages; expected one or more")
    for name, scale in (("k_scale", call.k_scale), ("v_scale", call.v_scale)):
        _check_scale(name, scale, call)
    _check_sequences(call)
    threads = call.rows * 2 * call.kv_heads * call.head_dim // VALUES
    if threads >= MOST_THREADS:
        raise NotImplementedError(f"{call.rows} rows are {threads} threads; this kernel has up to {MOST_THREADS - 1}")


def check_entries(call: Call) -> None:
    """Raise for lengths, rows or entries of pages that are read out of range. Reads CPU tensors."""
    ends, cu_out = call.ends.long(), call.cu_out.long()
    starts = torch.zeros_like(ends) if call.starts is None else call.starts.long()
    if len(ends) == 0:
        return
    tokens = call.table_width * call.page_size
    if starts.min() < 0 or ends.min() < 0 or ends.max() > tokens:
        raise ValueError(
            f"starts has {starts.min()}, ends {ends.min()} to {ends.max()}; expected 0 to {tokens}: block_table has "
            f"{call.table_width} pages"
        )
    room = cu_out.diff()
    if cu_out[0] < 0 or room.min() < 0 or cu_out[-1] > call.rows:
        raise ValueError(f"cu_out is {cu_out.tolist()}; expected not decreasing, from 0 to {call.rows}, k_out's rows")
    for i in ((ends - starts) > room).nonzero().flatten().tolist():
        raise ValueError(f"sequence {i} has {room[i]} rows in cu_out; expected {ends[i] - starts[i]} or more")
    first_slot = torch.arange(call.table_width) * call.page_size
    read = (first_slot < ends[:, None]) & (first_slot + call.page_size > starts[:, None]) & (starts < ends)[:, None]
    for i, column in (read & ((call.block_table < 0) | (call.block_table >= call.pages))).nonzero().tolist():
        raise ValueError(
            f"block_table[{i}, {column}] is {call.block_table[i, column]}, of a page that is read; expected 0 to "
            f"{call.pages - 1}"
        )


def _check_scale(name, scale, call):
    kv_format = KV_FORMATS[call.k_cache.dtype]
    check_scale(name, scale, kv_format, call.k_out, "k_out")
    per_token = call.k_cache.shape[:3]
    if scale is not None and scale.shape != per_token:
        check_static_scale(name, scale, kv_format, call.kv_heads, call.head_dim, per_token)


def _check_sequences(call):
    vectors = {"ends": call.ends, "cu_out": call.cu_out}
    if call.starts is not None:
        vectors["starts"] = call.starts
    for name, tensor in vectors.items():
        check_index(name, tensor, torch.int32, call.k_out, "k_out")
        count = call.sequences + (name == "cu_out")
        if tensor.shape[0] != count:
            raise ValueError(f"{name} has {tensor.shape[0]} entries; expected {count}: ends has {call.sequences}")
    check_table(call.block_table, call.sequences, call.page_size, MOST_TABLE_TOKENS, call.k_out, "k_out")
