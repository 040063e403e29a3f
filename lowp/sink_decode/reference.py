"""Decode attention with sinks in float64: the specification."""

import torch


def reference(
    q, k_cache, v_cache, block_table, seq_lens, sinks, *, sm_scale, window_left=-1, k_scale=None, v_scale=None, layout
):
    """1 to 4 query tokens a sequence, over a paged KV cache, with one sink logit per query head in the denominator.

    The n query tokens of sequence b are its last positions: token i is at position p = seq_lens[b] - n + i. For query
    head h', its KV head h = h' // group, and the tokens j that it sees, max(0, p - window_left) <= j <= p (from 0 on
    where window_left is -1):

        s_j = sm_scale * q[b, i, h'] . (k_j * k_scale_j)
        z   = exp(sinks[h']) + sum_j exp(s_j)
        out = sum_j exp(s_j) / z * (v_j * v_scale_j)
        lse = ln z

    as in gpt-oss: the sink is one more logit of the softmax, whose probability is dropped (transformers,
    modeling_gpt_oss.eager_attention_forward). Nothing is checked here.

    k_j, v_j are token j's vectors of head h: slot j % page_size of page block_table[b, j // page_size].
    A query token with p < 0 (a sequence shorter than the query tokens, or empty) sees nothing: out = 0 and
    lse = sinks[h']. Slots and pages that no sequence uses are never read. A sink of -inf adds nothing to z; one of NaN
    or +inf makes out and lse of its head NaN, as a softmax over it is, whatever is seen.

    Shapes, dtypes and scales as in `sink_decode`. Returns (out, lse) in float64: q's shape, and that without head_dim.
    """
    queries = q.double() if q.dim() == 4 else q.double()[:, None]
    batch, query_tokens, _, head_dim = queries.shape
    if layout == "HND":
        k_cache, v_cache = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
        k_scale, v_scale = (s.transpose(1, 2) if s is not None and s.dim() == 3 else s for s in (k_scale, v_scale))
    page_size, kv_heads = k_cache.shape[1:3]
    queries = queries.reshape(batch, query_tokens, kv_heads, queries.shape[2] // kv_heads, head_dim)
    sink = sinks.double().view(kv_heads, -1)
    sink = torch.where(sink == torch.inf, torch.nan, sink)
    out = torch.where(sink.isnan(), sink, 0.0)[..., None].expand(queries.shape).clone()
    lse = sink.repeat(batch, query_tokens, 1, 1)
    for b, length in enumerate(seq_lens.tolist()):
        newest = range(max(0, query_tokens - length), query_tokens)  # those with a position
        if not newest:
            continue
        start = 0 if window_left < 0 else max(0, length - query_tokens + newest[0] - window_left)
        token = torch.arange(start, length, device=q.device)
        page, slot = block_table[b, token // page_size].long(), token % page_size
        k = _read(k_cache, page, slot, k_scale)
        v = _read(v_cache, page, slot, v_scale)
        for i in newest:
            position = length - query_tokens + i
            seen = token <= position
            if window_left >= 0:
                seen &= token >= position - window_left
            s = torch.einsum("hgd,nhd->hgn", queries[b, i], k[seen]) * sm_scale
            largest = torch.maximum(s.amax(-1), sink)
            p = (s - largest[..., None]).exp()
            z = p.sum(-1) + (sink - largest).exp()
            out[b, i] = torch.einsum("hgn,nhd->hgd", p, v[seen]) / z[..., None]
            lse[b, i] = largest + z.log()
    return out.view(q.shape), lse.view(q.shape[:-1])


def _read(cache, page, slot, scale):
    """Tokens of a cache in NHD order, dequantised: [tokens, kv_heads, head_dim] in float64."""
    # Gathered as raw bits: indexing is not implemented for float8 on every device.
    bits = cache.view(torch.uint8 if cache.dtype.itemsize == 1 else torch.int16)
    stored = bits[page, slot].view(cache.dtype).double()
    if scale is None or scale.numel() == 1:
        return stored * (1.0 if scale is None else scale.double().view(()))
    if scale.dim() == 2:
        return stored * scale.double()
    return stored * (scale[page, slot] if scale.dim() == 3 else scale).double()[..., None]
