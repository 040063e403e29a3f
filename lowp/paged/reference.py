"""Attention with sinks over a paged KV cache in float64: the specification of every kernel."""

import torch

from lowp.paged.layouts import gather, in_nhd


def reference(
    q, k_cache, v_cache, block_table, seq_lens, sinks, *, sm_scale, window_left=-1, k_scale=None, v_scale=None, layout
):
    """Causal attention of each sequence's last query tokens, with one sink logit per query head in the denominator.

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
    lse = sinks[h']. Slots and pages that no query token sees are never read. A sink of -inf adds nothing to z, and
    sinks may be None for that; one of NaN or +inf makes out and lse of its head NaN, as a softmax over it is, even
    where nothing is seen.

    q: [batch, query_tokens, query_heads, head_dim], with any number of query tokens, or [batch, query_heads, head_dim]
    for one. The other shapes, dtypes and scales as in `sink_decode`. Returns (out, lse) in float64: q's shape, and
    that without head_dim.
    """
    queries = q.double() if q.dim() == 4 else q.double()[:, None]
    batch, query_tokens, query_heads, head_dim = queries.shape
    page_size, kv_heads = in_nhd(k_cache, layout).shape[1:3]
    queries = queries.reshape(batch, query_tokens, kv_heads, query_heads // kv_heads, head_dim)
    sink = q.new_full((query_heads,), -torch.inf, dtype=torch.float64) if sinks is None else sinks.double()
    sink = torch.where(sink == torch.inf, torch.nan, sink).view(kv_heads, -1)
    out = torch.where(sink.isnan(), sink, 0.0)[..., None].expand(queries.shape).clone()
    lse = sink.repeat(batch, query_tokens, 1, 1)
    for b, length in enumerate(seq_lens.tolist()):
        positions = range(max(0, length - query_tokens), length)
        if not positions:
            continue
        first = 0 if window_left < 0 else max(0, positions[0] - window_left)
        token = torch.arange(first, length, device=q.device)
        page, slot = block_table[b, token // page_size].long(), token % page_size
        k = _read(k_cache, k_scale, page, slot, layout)
        v = _read(v_cache, v_scale, page, slot, layout)
        for position in positions:
            i = position - length  # counted from the last query token
            seen = slice(0 if window_left < 0 else max(0, position - window_left) - first, position + 1 - first)
            s = torch.einsum("hgd,nhd->hgn", queries[b, i], k[seen]) * sm_scale
            largest = torch.maximum(s.amax(-1), sink)
            p = (s - largest[..., None]).exp()
            z = p.sum(-1) + (sink - largest).exp()
            out[b, i] = torch.einsum("hgn,nhd->hgd", p, v[seen]) / z[..., None]
            lse[b, i] = largest + z.log()
    return out.view(q.shape), lse.view(q.shape[:-1])


def _read(cache, scale, page, slot, layout):
    """Dequantise tokens of a cache: [tokens, kv_heads, head_dim] in float64."""
    stored, scale = gather(cache, scale, page, slot, layout)
    return stored.double() if scale is None else stored.double() * scale.double()
