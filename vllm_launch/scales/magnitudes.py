"""Counts of BF16 values by magnitude: exact amax, percentiles and saturation in memory that no text makes larger.

BF16 has 32,768 magnitudes, its bits without the sign. Counts are int64 [..., 32768], one row a head.
"""

import torch

from lowp.formats import FORMATS, amax_scale

MAGNITUDES = 1 << 15
INFINITY_BITS = 0x7F80  # above it are the NaNs
LARGEST = FORMATS["e4m3"].largest


def count(states: torch.Tensor) -> torch.Tensor:
    """Count the magnitudes of each head: [heads, 32768] of BF16 states [batch, heads, tokens, head_dim]."""
    if states.dtype != torch.bfloat16 or states.dim() != 4:
        raise TypeError(f"got {states.dtype} of shape {list(states.shape)}, expected BF16 of 4 axes")
    heads = states.shape[1]
    bits = states.transpose(0, 1).reshape(heads, -1).view(torch.int16).int() & (MAGNITUDES - 1)
    rows = torch.arange(heads, dtype=torch.int32, device=states.device)[:, None] * MAGNITUDES
    return torch.bincount((bits + rows).flatten(), minlength=heads * MAGNITUDES).view(heads, MAGNITUDES)


def not_finite(counts: torch.Tensor) -> torch.Tensor:
    """How many values of each row are NaN or infinite."""
    return counts[..., INFINITY_BITS:].sum(-1)


def percentile(counts: torch.Tensor, percent: float) -> torch.Tensor:
    """The least magnitude that `percent` of a row's values do not exceed, fp32; 100 is amax. Rows are not empty."""
    covered = counts.cumsum(-1)
    needed = covered[..., -1:].double() * (percent / 100)
    return _values(counts.device)[(covered < needed).sum(-1)]


def saturated(counts: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """How many values of each row are out of E4M3's range once divided by the row's scale."""
    rows = scale[..., None] if isinstance(scale, torch.Tensor) else scale
    return (counts * (_values(counts.device) / rows > LARGEST)).sum(-1)


def e4m3_scales(counts: torch.Tensor, percent: float, headroom: float, granularity: str) -> torch.Tensor:
    """The scales that map a percentile x headroom onto 448: fp32 [heads], or [1] for granularity tensor.

    counts: [heads, 32768]. 1.0 where that magnitude is 0.
    """
    rows = counts if granularity == "head" else counts.sum(0, keepdim=True)
    magnitude = percentile(rows, percent) * headroom
    return amax_scale(magnitude[None, :, None], "e4m3", "head").flatten()


def _values(device: torch.device) -> torch.Tensor:
    """Each magnitude as fp32."""
    bits = torch.arange(MAGNITUDES, dtype=torch.int32, device=device).to(torch.int16)
    return bits.view(torch.bfloat16).float()
