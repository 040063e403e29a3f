"""The specification of attention over a ring, in fp32: dequantise, concatenate, SDPA.

Let k, v be the window's dequantised tokens whose position is not negative, followed by the current frame:
    out = softmax(q k^T / sqrt(head_dim)) v
"""

import torch
import torch.nn.functional as F

from lowp.static_cache.ring import Ring, history, written


def attention(q, ring: Ring, new_k, new_v, newest: int | None = None) -> torch.Tensor:
    """Return the attention of q [batch, heads, frame_tokens, head_dim] in q's dtype. newest: see `history`."""
    k, v = history(ring, newest)
    k, v = torch.cat([k, new_k.float()], 2), torch.cat([v, new_v.float()], 2)
    mask = written(ring, newest)[None, None, None]
    return F.scaled_dot_product_attention(q.float(), k, v, attn_mask=mask).to(q.dtype)
