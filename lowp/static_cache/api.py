"""Attention of the current frame over a cache: validate and dispatch."""

import torch

from lowp.static_cache import checks, flex, fused, reference
from lowp.static_cache.cache import StaticCache

BACKENDS = {"reference": reference.attention, "flex": flex.attention, "triton": fused.attention}


def attend(
    q: torch.Tensor,
    cache: StaticCache,
    layer: int,
    new_k: torch.Tensor,
    new_v: torch.Tensor,
    backend: str = "reference",
) -> torch.Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) v over a layer's history and the current frame; see `reference`.

    q, new_k, new_v: [batch, heads, frame_tokens, head_dim], contiguous, the cache's dtype; keys rotated. Every query
        sees the whole window and the whole frame. The frame is not committed: call `cache.update` after `attend`.
    backend: `reference` dequantises. `flex` reads the stored codes; on a GPU call it in compiled code, since outside it
        builds the whole score matrix. `triton` reads every quantised storage by a kernel of ours: on a GPU, for
        caches in BF16 with head_dim 32, 64 or 128.
    Raises ValueError (shape, layer, backend), TypeError (dtype), NotImplementedError (storage, dtype, head_dim or
    device that a backend lacks).
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    checks.check_layer(cache, layer)
    checks.check_frames(cache, q=q, new_k=new_k, new_v=new_v)
    ring = cache.rings[layer]
    if cache.tail_only is None:
        return BACKENDS[backend](q, ring, new_k, new_v)
    if backend != "reference":
        raise NotImplementedError(f"backend {backend} reads whole windows; expected reference with tail_only")
    return reference.attention(q, ring, new_k, new_v, cache.newest(layer))
