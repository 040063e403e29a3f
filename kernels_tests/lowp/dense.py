"""A second attention with sinks, to judge `lowp.paged.reference`.

Every kernel, test and bench is held against that one reference, so a mistake in it would pass everywhere. Nothing is
shared with it here, on purpose: tokens are read one at a time by plain indexing, and the softmax is torch's, over the
scores of one query token and KV head with the sink as an extra column whose value is zero. Slow; for small cases alone.
"""

import torch


def attention(
    q, k_cache, v_cache, block_table, seq_lens, sinks, *, sm_scale, window_left, layout, k_scale=None, v_scale=None
):
    """(out, lse) of `reference` for the same arguments."""
    queries = q.double() if q.dim() == 4 else q.double()[:, None]
    out, lse = torch.zeros_like(queries), sinks.double().expand(queries.shape[:3]).clone()
    page_size, kv_heads = k_cache.shape[1:3] if layout == "NHD" else (k_cache.shape[2], k_cache.shape[1])
    group = queries.shape[2] // kv_heads
    for b, length in enumerate(seq_lens.tolist()):
        for i, query in enumerate(queries[b]):
            position = length - len(queries[b]) + i
            seen = [j for j in range(position + 1) if window_left < 0 or position - j <= window_left]
            slots = [(int(block_table[b, j // page_size]), j % page_size) for j in seen]
            for head in range(kv_heads if seen else 0):
                heads = slice(head * group, (head + 1) * group)
                keys = torch.stack([_token(k_cache, k_scale, *slot, head, layout) for slot in slots])
                values = torch.stack([_token(v_cache, v_scale, *slot, head, layout) for slot in slots])
                logits = torch.cat([query[heads] @ keys.T * sm_scale, sinks[heads, None].double()], dim=1)
                out[b, i, heads] = torch.softmax(logits, 1)[:, :-1] @ values
                lse[b, i, heads] = torch.logsumexp(logits, 1)
    return out.view(q.shape), lse.view(q.shape[:-1])


def _token(cache, scale, page, slot, head, layout):
    """One token's vector of one KV head, dequantised."""
    index = (page, slot, head) if layout == "NHD" else (page, head, slot)
    stored = cache[index].double()
    if scale is None or scale.numel() == 1:
        return stored if scale is None else stored * scale.double().item()
    return stored * (scale[index] if scale.dim() == 3 else scale[head]).double()
