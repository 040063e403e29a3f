"""Write into the paged cache in plain torch: the specification of the kernel, and what a CPU runs."""

import torch

from lowp.cache_write.call import Call
from lowp.formats import quantize
from lowp.paged.checks import KV_FORMATS
from lowp.paged.layouts import as_bits, in_nhd


def write(call: Call) -> None:
    """Compute a checked call: for each token i with slot s = slot_mapping[i] >= 0, and both K and V,

        cache[s // page_size, s % page_size, head] = quantize(x[i, head] / scale)

    where x is k or v; k rotated first if the call has a rotation. scale is scale[head], of one value or head_dim, or,
    where the call computes the scales,

        scale = scale[s // page_size, s % page_size, head] = row_scale(x[i, head])

    Nothing else of the caches and scales changes. saturated counts |x / scale| over the format's largest magnitude;
    of computed scales only infinities, since rounding the scale down may put the largest value itself just over.
    """
    tokens = call.tokens
    k, v = call.k[:tokens], call.v[:tokens]
    if call.rotation:
        q, positions, cos_sin = call.rotation.q[:tokens], call.rotation.positions[:tokens], call.rotation.cos_sin
        call.rotation.q_out[:tokens] = rotate(q, positions, cos_sin).to(q.dtype)
        k = rotate(k, positions, cos_sin)
    written = call.slot_mapping >= 0
    slots = call.slot_mapping[written]
    page, slot = slots // call.page_size, slots % call.page_size
    for index, (x, cache, scale) in enumerate(((k, call.k_cache, call.k_scale), (v, call.v_cache, call.v_scale))):
        x = x[written]
        if call.computed_scales:
            row_scales = row_scale(x)
            in_nhd(scale, call.layout)[page, slot] = row_scales
            scale = row_scales[..., None]
        elif scale is not None:
            scale = scale.view(-1, scale.shape[-1] if scale.dim() == 2 else 1)
        stored = quantize(x, KV_FORMATS[cache.dtype].name, scale)
        as_bits(in_nhd(cache, call.layout))[page, slot] = as_bits(stored.values)
        if call.saturated is not None:
            call.saturated[index] += x.isinf().sum() if call.computed_scales else stored.saturated


def row_scale(x: torch.Tensor) -> torch.Tensor:
    """Compute the int8 scale of each row of [..., head_dim]: fp32 amax / 127, amax the largest finite magnitude.

    At least 2^-126, the smallest normal number; 1 where amax is 0. So a row of zeros stores zeros, an infinity +-127
    and NaN 0, and neither of these changes how the row's other values are stored.
    """
    amax = torch.where(x.isfinite(), x, 0).float().abs().amax(dim=-1)
    return torch.where(amax > 0, (amax / 127).clamp(min=torch.finfo(torch.float32).tiny), 1.0)


def rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate [tokens, heads, head_dim] by the table's angles, in float64, rounded to fp32. Half-split:

    (low, high) -> (low cos - high sin, high cos + low sin), low and high the halves of a head.
    """
    cos, sin = cos_sin[positions].double()[:, None].chunk(2, dim=-1)
    low, high = x.double().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).float()
