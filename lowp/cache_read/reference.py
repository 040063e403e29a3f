"""Read out of the paged cache in plain torch: the specification of the kernel, and what a CPU runs."""

import torch

from lowp.cache_read.call import Call
from lowp.formats import dequantize
from lowp.paged.layouts import gather


def read(call: Call) -> None:
    """Compute a checked call: for each sequence i and token t, starts[i] <= t < ends[i], and both K and V,

        out[cu_out[i] + t - starts[i], head] = dequantize(cache[page, t % page_size, head], scale)

    with page = block_table[i, t // page_size], rounded to the dtype of out. Nothing else of out changes.
    """
    starts = torch.zeros_like(call.ends) if call.starts is None else call.starts
    for i, (start, end, row) in enumerate(zip(starts.tolist(), call.ends.tolist(), call.cu_out.tolist(), strict=False)):
        token = torch.arange(start, max(start, end))
        page, slot = call.block_table[i, token // call.page_size].long(), token % call.page_size
        for cache, scale, out in (
            (call.k_cache, call.k_scale, call.k_out),
            (call.v_cache, call.v_scale, call.v_out),
        ):
            values = dequantize(*gather(cache, scale, page, slot, call.layout))
            out[row : row + len(token)] = values.to(out.dtype)
