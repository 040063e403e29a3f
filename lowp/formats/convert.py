"""Convert values to and from a storage format: stored = round(clamp(x / scale)), x ~ stored * scale."""

from dataclasses import dataclass

import torch

from lowp.formats.table import GRANULARITIES, find, scale_axes


@dataclass(frozen=True)
class Quantized:
    """Stored values, and how many inputs were out of range.

    values: the shape of the input, the format's dtype. saturated: how many inputs were over the largest magnitude
    (infinities too); nan: how many were NaN. Both int64 tensors without axes, on the input's device: no sync.
    """

    values: torch.Tensor
    saturated: torch.Tensor
    nan: torch.Tensor


def amax_scale(x: torch.Tensor, kv_format: str, granularity: str, layout: str = "NHD") -> torch.Tensor | None:
    """Return the scale that maps the largest finite magnitude of each part of x onto the format's largest.

    x: any floating dtype, [..., tokens, heads, head_dim] (NHD) or [..., heads, tokens, head_dim] (HND).
    granularity: see `Format.granularities`. Returns fp32 with x's rank, 1 in each axis that shares a scale, always
    normal and positive (1 where a part holds no finite value but 0); None for granularity "none".
    Raises ValueError for an unknown word, NotImplementedError for a granularity that the format does not support.
    """
    chosen = find(kv_format)
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity {granularity!r} is unknown; expected one of {', '.join(GRANULARITIES)}")
    if granularity not in chosen.granularities:
        raise NotImplementedError(
            f"{kv_format} has no scales of granularity {granularity!r}; it supports {', '.join(chosen.granularities)}"
        )
    if granularity == "none":
        return None
    magnitude = torch.where(x.isfinite(), x, 0).float().abs()
    amax = magnitude.amax(dim=scale_axes(granularity, layout, x.dim()), keepdim=True)
    scale = (amax / chosen.largest).clamp(min=torch.finfo(torch.float32).tiny)
    # A scale rounded down would put the largest magnitude itself out of range.
    scale = torch.where(amax / scale > chosen.largest, scale.nextafter(torch.full_like(scale, torch.inf)), scale)
    return torch.where(amax > 0, scale, 1.0)


def quantize(x: torch.Tensor, kv_format: str, scale: torch.Tensor | None = None) -> Quantized:
    """Round x / scale to the nearest stored value, ties to even, clamped to the format's finite range.

    x: any floating dtype. scale: fp32, broadcast against x; None is 1. NaN stays NaN where the format has one and
    is 0 in int8; an infinity becomes the largest value of its sign.
    Raises ValueError for an unknown format, TypeError for an x that is not floating.
    """
    chosen = find(kv_format)
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; expected a floating dtype")
    scaled = x.float() if scale is None else x.float() / scale
    nan = scaled.isnan()
    clamped = scaled.clamp(-chosen.largest, chosen.largest)
    if not chosen.has_nan:
        clamped = torch.where(nan, 0.0, clamped).round()
    return Quantized(clamped.to(chosen.dtype), (scaled.abs() > chosen.largest).sum(), nan.sum())


def dequantize(values: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Return values * scale in fp32; values: of any format's dtype. scale: fp32, broadcast to them; None is 1."""
    return values.float() if scale is None else values.float() * scale
