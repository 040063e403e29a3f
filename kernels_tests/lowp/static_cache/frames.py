"""Caches and frames of the tests: two sequences, a global layer of 4 frames and a local one of 2."""

import torch

from lowp.static_cache import QuantizedStaticCache, StaticCache

BATCH, HEADS, HEAD_DIM, FRAME_TOKENS = 2, 2, 64, 8
WINDOWS = (4 * FRAME_TOKENS, 2 * FRAME_TOKENS)
FRAME = (BATCH, HEADS, FRAME_TOKENS, HEAD_DIM)
LAYERS = range(len(WINDOWS))
FIXED_SCALE = torch.tensor([0.02, 0.05])
SHAPE = {
    "layers": len(WINDOWS),
    "batch": BATCH,
    "heads": HEADS,
    "head_dim": HEAD_DIM,
    "frame_tokens": FRAME_TOKENS,
    "windows": WINDOWS,
    "device": "cpu",
}


def plain(dtype: torch.dtype = torch.float32, **changes) -> StaticCache:
    return StaticCache(**SHAPE | {"dtype": dtype} | changes)


def quantized(dtype: torch.dtype = torch.float32, **changes) -> QuantizedStaticCache:
    return QuantizedStaticCache(**SHAPE | {"dtype": dtype} | changes)


def frame(
    seed: int,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    tokens: int = FRAME_TOKENS,
    head_dim: int = HEAD_DIM,
) -> list[torch.Tensor]:
    """Return q, k and v of a frame; tokens and heads differ in magnitude, so that a wrong scale shows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, tokens, head_dim)
    q, k, v = torch.randn(3, *shape, generator=generator)
    magnitude = torch.rand(2, *shape[:3], 1, generator=generator) * 2 + 0.1
    return [(x * scale).to(dtype) for x in (q, k * magnitude[0], v * magnitude[1])]


def quantized_as(k_storage, v_storage, dtype: torch.dtype = torch.float32, **changes) -> QuantizedStaticCache:
    """Return a cache whose K and V are stored as (format, scale)."""
    (k_format, k_scale), (v_format, v_scale) = k_storage, v_storage
    formats = {"k_format": k_format, "k_scale": k_scale, "v_format": v_format, "v_scale": v_scale}
    return quantized(dtype, **formats | changes)
