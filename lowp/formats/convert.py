"""Convert values to and from a storage format: stored = round(clamp(x / scale)), x ~ stored * scale."""

import math
from dataclasses import dataclass

import torch

from lowp.formats import packed
from lowp.formats.table import BLOCK_SCALE_DTYPE, BLOCK_VALUES, GRANULARITIES, Format, find, scale_axes

TO_CODES = {"mxfp4": packed.to_e2m1, "int4": packed.to_int4}  # of formats with two values in a byte
FROM_CODES = {"mxfp4": packed.from_e2m1, "int4": packed.from_int4}


@dataclass(frozen=True)
class Quantized:
    """Stored values, and how many inputs were out of range.

    values: the format's dtype and the shape of the input; two neighbours of 4 bits in a byte halve the last axis.
    saturated: how many inputs were over the largest magnitude (infinities too); nan: how many were NaN. Both int64
    tensors without axes, on the input's device: no sync.
    """

    values: torch.Tensor
    saturated: torch.Tensor
    nan: torch.Tensor


def amax_scale(x: torch.Tensor, kv_format: str, granularity: str, layout: str = "NHD") -> torch.Tensor | None:
    """Return the scale that maps the largest finite magnitude of each part of x onto the format's largest.

    x: any floating dtype, [..., tokens, heads, head_dim] (NHD) or [..., heads, tokens, head_dim] (HND).
    granularity: see `Format.granularities`. Returns fp32 with x's rank, 1 in each axis that shares a scale, always
    normal and positive (1 where a part holds no finite value but 0); None for granularity "none". Of granularity
    "block" it returns E8M0 [..., head_dim / 32]: the least power of two that keeps the block in range (RCEIL of cuBLAS
    and torchao). OCP's own rule, the largest power of two up to the largest magnitude over that of the format, clamps
    what lies between 1.75 x 2^n (E2M1: 1.5 x 2^n) and 2^(n+1).
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
    if granularity == "block":
        return _power_of_two(_blocks(magnitude).amax(-1), chosen)
    amax = magnitude.amax(dim=scale_axes(granularity, layout, x.dim()), keepdim=True)
    # By a tensor: a GPU multiplies by the reciprocal of a number; off by one bit, a scale turns ties to another code.
    scale = (amax / torch.full_like(amax, chosen.largest)).clamp(min=torch.finfo(torch.float32).tiny)
    # A scale rounded down would put the largest magnitude itself out of range.
    scale = torch.where(amax / scale > chosen.largest, scale.nextafter(torch.full_like(scale, torch.inf)), scale)
    return torch.where(amax > 0, scale, 1.0)


def quantize(x: torch.Tensor, kv_format: str, scale: torch.Tensor | None = None) -> Quantized:
    """Round x / scale to the nearest stored value, ties to even, clamped to the format's finite range.

    x: any floating dtype. scale: fp32, broadcast against x, or E8M0 of blocks; None is 1. NaN stays NaN where the
    format has one and is 0 in integers and mxfp4; an infinity becomes the largest value of its sign.
    Raises ValueError for an unknown format or an odd last axis of 4 bits, TypeError for an x that is not floating or a
    scale of another kind than the format's.
    """
    chosen = find(kv_format)
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; expected a floating dtype")
    _check_scale(chosen, scale)
    scaled = x.float() if scale is None else x.float() / _factor(scale)
    nan = scaled.isnan()
    clamped = scaled.clamp(-chosen.largest, chosen.largest)
    if not chosen.has_nan:
        clamped = torch.where(nan, 0.0, clamped)
    if chosen.step == 0:
        clamped = clamped.round()
    values = packed.pack(TO_CODES[kv_format](clamped)) if kv_format in TO_CODES else clamped.to(chosen.dtype)
    return Quantized(values, (scaled.abs() > chosen.largest).sum(), nan.sum())


def dequantize(values: torch.Tensor, scale: torch.Tensor | None = None, kv_format: str | None = None) -> torch.Tensor:
    """Return values * scale in fp32. scale: fp32, broadcast to the values, or E8M0 of blocks; None is 1.

    kv_format: the format of the values; needed where they are of 4 bits, which share one dtype.
    """
    if values.dtype == torch.uint8:
        if kv_format not in FROM_CODES:
            raise ValueError(f"values of 4 bits are in format {kv_format!r}; expected {' or '.join(FROM_CODES)}")
        values = FROM_CODES[kv_format](packed.unpack(values))
    return values.float() if scale is None else values.float() * _factor(scale)


def scale_values(scale: torch.Tensor) -> torch.Tensor:
    """Return the values of a scale in fp32. E8M0 by its bits: the exponent of fp32 has the same bias."""
    if scale.dtype != BLOCK_SCALE_DTYPE:
        return scale
    return (scale.view(torch.uint8).int() << 23).view(torch.float32)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] % BLOCK_VALUES:
        raise ValueError(f"head_dim is {x.shape[-1]}; expected a multiple of a block's {BLOCK_VALUES} values")
    return x.unflatten(-1, (-1, BLOCK_VALUES))


def _power_of_two(amax: torch.Tensor, chosen: Format) -> torch.Tensor:
    """Return the least power of two that brings amax down to the format's largest, as E8M0; 1 where amax is 0."""
    (mantissa, exponent), (largest, largest_exponent) = torch.frexp(amax), math.frexp(chosen.largest)
    # Not under 2^-126: 2^-127 is subnormal in fp32, and some GPU code flushes it to 0.
    power = (exponent - largest_exponent + (mantissa > largest)).clamp(min=-126)
    return torch.where(amax > 0, power + 127, 127).to(torch.uint8).view(BLOCK_SCALE_DTYPE)


def _factor(scale: torch.Tensor) -> torch.Tensor:
    """Return a scale in fp32, that of a block once for each of its values."""
    return scale_values(scale).repeat_interleave(BLOCK_VALUES, -1) if scale.dtype == BLOCK_SCALE_DTYPE else scale


def _check_scale(chosen: Format, scale: torch.Tensor | None) -> None:
    is_block = scale is not None and scale.dtype == BLOCK_SCALE_DTYPE
    if is_block and "block" not in chosen.granularities:
        raise TypeError(f"the scale of {chosen.name} is {scale.dtype}; expected fp32")
    if scale is not None and not is_block and chosen.granularities == ("block",):
        raise TypeError(f"the scale of {chosen.name} is {scale.dtype}; expected {BLOCK_SCALE_DTYPE}")
