"""Write into the paged cache in plain torch: the specification of the kernel, and what a CPU runs."""

import torch

from lowp.cache_write.call import Call
from lowp.formats import quantize
from lowp.paged.checks import KV_FORMATS
from lowp.paged.layouts import as_bits, in_nhd


def write(call: Call) -> None:
    """Compute a checked call: for each token i with slot s = slot_mapping[i] >= 0, and both K and V,

        cache[s // page_size, s % page_size, head] = quantize(x[i, head] / scale[head])

    where x is k or v; k rotated first if the call has a rotation. Nothing else of the cache changes.
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
        stored = quantize(x[written], KV_FORMATS[cache.dtype].name, None if scale is None else scale.view(-1, 1))
        as_bits(in_nhd(cache, call.layout))[page, slot] = as_bits(stored.values)
        if call.saturated is not None:
            call.saturated[index] += stored.saturated


def rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate [tokens, heads, head_dim] by the table's angles, in float64, rounded to fp32. Half-split:

    (low, high) -> (low cos - high sin, high cos + low sin), low and high the halves of a head.
    """
    cos, sin = cos_sin[positions].double()[:, None].chunk(2, dim=-1)
    low, high = x.double().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).float()
