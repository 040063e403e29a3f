"""Counts of BF16 values by magnitude: exact amax, percentiles and saturation in memory that no text makes larger.

BF16 has 32,768 magnitudes, its bits without the sign. Counts are int64 [..., 32768], one row for each scale: of a head,
or of a rotary pair of channels.
"""

import torch

from lowp.formats import FORMATS, amax_scale

MAGNITUDES = 1 << 15
INFINITY_BITS = 0x7F80  # above it are the NaNs


def count(states: torch.Tensor) -> torch.Tensor:
    """Count the magnitudes of each head: [heads, 32768] of BF16 states [batch, heads, tokens, head_dim]."""
    if states.dtype != torch.bfloat16 or states.dim() != 4:
        raise TypeError(f"got {states.dtype} of shape {list(states.shape)}, expected BF16 of 4 axes")
    heads = states.shape[1]
    bits = states.transpose(0, 1).reshape(heads, -1).view(torch.int16).int() & (MAGNITUDES - 1)
    rows = torch.arange(heads, dtype=torch.int32, device=states.device)[:, None] * MAGNITUDES
    return torch.bincount((bits + rows).flatten(), minlength=heads * MAGNITUDES).view(heads, MAGNITUDES)


def count_pairs(keys: torch.Tensor) -> torch.Tensor:
    """Count the norms of each head's rotary pairs of channels, (i, i + head_dim / 2): [heads, head_dim / 2, 32768].

    A rotary embedding turns a pair by an angle that grows with the position and keeps its norm, which is thus the
    largest magnitude that either channel has at any position. keys: BF16 [batch, heads, tokens, head_dim].
    """
    if keys.dtype != torch.bfloat16 or keys.dim() != 4:
        raise TypeError(f"got {keys.dtype} of shape {list(keys.shape)}, expected BF16 of 4 axes")
    norms = torch.hypot(*keys.float().chunk(2, dim=-1)).bfloat16()
    rows = norms.transpose(2, 3).flatten(1, 2)[..., None]
    return count(rows).unflatten(0, (keys.shape[1], -1))


def not_finite(counts: torch.Tensor) -> torch.Tensor:
    """How many values of each row are NaN or infinite."""
    return counts[..., INFINITY_BITS:].sum(-1)


def percentile(counts: torch.Tensor, percent: float) -> torch.Tensor:
    """The least magnitude that `percent` of a row's values do not exceed, fp32; 100 is amax. Rows are not empty."""
    covered = counts.cumsum(-1)
    needed = covered[..., -1:].double() * (percent / 100)
    return _values(counts.device)[(covered < needed).sum(-1)]


def saturated(counts: torch.Tensor, scale: torch.Tensor | float, kv_format: str) -> torch.Tensor:
    """How many values of each row are out of a format's range once divided by the row's scale."""
    rows = scale[..., None] if isinstance(scale, torch.Tensor) else scale
    return (counts * (_values(counts.device) / rows > FORMATS[kv_format].largest)).sum(-1)


def scales(counts: torch.Tensor, kv_format: str, percent: float, headroom: float) -> torch.Tensor:
    """The scales that map each row's percentile x headroom onto a format's largest value, fp32 [...].

    1.0 where that magnitude is 0.
    """
    magnitude = percentile(counts, percent) * headroom
    return amax_scale(magnitude.flatten()[None, :, None], kv_format, "head").view(magnitude.shape)


def _values(device: torch.device) -> torch.Tensor:
    """Each magnitude as fp32."""
    bits = torch.arange(MAGNITUDES, dtype=torch.int32, device=device).to(torch.int16)
    return bits.view(torch.bfloat16).float()
