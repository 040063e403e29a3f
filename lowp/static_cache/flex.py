"""FlexAttention over a ring: the kernel casts stored codes in registers, no dequantised copy is made.

K's scale multiplies the score in `score_mod`. V's scale must be one of each head: it multiplies the output. A scale per
slot of V would have to multiply the probabilities after the sum, which FlexAttention cannot. Nor does it read
block scales and two values in a byte. `fused` does all of this.
"""

import torch
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from lowp.static_cache.ring import Ring, write_tail
from lowp.static_cache.store import Store, values_per_code


def attention(q, ring: Ring, new_k, new_v) -> torch.Tensor:
    """Return the attention of q [batch, heads, frame_tokens, head_dim] in q's dtype.

    A ring with a tail is one call over one tensor. Otherwise the current frame is a second call, merged by its
    log-sum-exp.
    """
    if ring.has_tail:
        write_tail(ring, new_k, new_v)
        return flex_attention(q, ring.k.codes, ring.v.codes, block_mask=ring.block_mask)
    if ring.v.scale_per_slot:
        raise NotImplementedError("flex has no V scales per slot; expected v_scale none or one fixed scale per head")
    for store in (ring.k, ring.v):
        if store.scaling == "block" or values_per_code(store.kv_format) > 1:
            raise NotImplementedError(f"flex does not read {store.kv_format}; expected 8 bits or more, no block scales")
    lse = AuxRequest(lse=True)
    score_mod = key_scale(ring.k)
    past, past_aux = flex_attention(
        q, ring.k.codes, ring.v.codes, score_mod=score_mod, block_mask=ring.block_mask, return_aux=lse
    )
    if ring.v.scale is not None:
        past = past * ring.v.scale
    current, current_aux = flex_attention(q, new_k, new_v, return_aux=lse)
    return merge(past, past_aux.lse, current, current_aux.lse).to(q.dtype)


def key_scale(store: Store):
    """Return the score_mod that multiplies by K's scales; None without scales."""
    scale = store.scale
    if scale is None:
        return None
    if store.scale_per_slot:
        return lambda score, batch, head, query, slot: score * scale[batch, head, slot, 0]
    return lambda score, batch, head, query, slot: score * scale[0, head, 0, 0]


def merge(a: torch.Tensor, a_lse: torch.Tensor, b: torch.Tensor, b_lse: torch.Tensor) -> torch.Tensor:
    """Merge two segments' outputs by their log-sum-exp (natural), in fp32. At most one segment may be empty (-inf)."""
    share = torch.sigmoid(a_lse.float() - b_lse.float())[..., None]
    return share * a.float() + (1 - share) * b.float()
