"""Decode attention with sinks in float64: the specification."""

import torch


def reference(
    q, k_cache, v_cache, block_table, seq_lens, sinks, *, sm_scale, window_left=-1, k_scale=None, v_scale=None, layout
):
    """One query token a sequence, over a paged KV cache, with one sink logit per query head in the denominator.

    For sequence b of length n, query head i, its KV head h = i // group, and the tokens j that are read,
    max(0, n - 1 - window_left) <= j < n (all of them where window_left is -1):

        s_j = sm_scale * q[b, i] . (k_j * k_scale_j)
        z   = exp(sinks[i]) + sum_j exp(s_j)
        out = sum_j exp(s_j) / z * (v_j * v_scale_j)
        lse = ln z

    where k_j, v_j are token j's vectors of head h: slot j % page_size of page block_table[b, j // page_size].
    A sequence of length 0 gives out = 0 and lse = sinks[i]. Slots and pages that no sequence uses are never read.

    Shapes, dtypes and scales as in `sink_decode`. Returns (out, lse) in float64, [batch, query_heads, head_dim] and
    [batch, query_heads].
    """
    batch, query_heads, head_dim = q.shape
    if layout == "HND":
        k_cache, v_cache = k_cache.transpose(1, 2), v_cache.transpose(1, 2)
        k_scale, v_scale = (s.transpose(1, 2) if s is not None and s.dim() == 3 else s for s in (k_scale, v_scale))
    page_size, kv_heads = k_cache.shape[1:3]
    sink = sinks.double().view(kv_heads, -1)
    out = torch.zeros(batch, kv_heads, query_heads // kv_heads, head_dim, dtype=torch.float64, device=q.device)
    lse = sink.repeat(batch, 1, 1)
    for b, length in enumerate(seq_lens.tolist()):
        start = 0 if window_left < 0 else max(0, length - 1 - window_left)
        if start >= length:
            continue
        token = torch.arange(start, length, device=q.device)
        page, slot = block_table[b, token // page_size].long(), token % page_size
        k = _read(k_cache, page, slot, k_scale)
        v = _read(v_cache, page, slot, v_scale)
        query = q[b].double().view(kv_heads, -1, head_dim)
        s = torch.einsum("hgd,nhd->hgn", query, k) * sm_scale
        largest = torch.maximum(s.amax(-1), sink)
        p = (s - largest[..., None]).exp()
        z = p.sum(-1) + (sink - largest).exp()
        out[b] = torch.einsum("hgn,nhd->hgd", p, v) / z[..., None]
        lse[b] = largest + z.log()
    return out.view(batch, query_heads, head_dim), lse.view(batch, query_heads)


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
