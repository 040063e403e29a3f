"""What a layer's cache holds: poison before a test, and the check that a token's K and V are stored as they must be."""

import torch

from lowp.paged.layouts import gather

E4M3_LARGEST, INT8_LARGEST = 448.0, 127


def poison(layer_impl, cache: torch.Tensor) -> None:
    """Fill a cache with NaN; int8 with its largest value, and scales of NaN."""
    cache.view(torch.uint8).fill_(0x7F)
    if layer_impl.kv_format == "bf16":
        cache.fill_(torch.nan)
    elif layer_impl.kv_format == "int8":
        views = layer_impl.views(cache)
        views.k_scale.fill_(torch.nan)
        views.v_scale.fill_(torch.nan)


def stored(layer_impl, cache: torch.Tensor, half: int, slot: torch.Tensor) -> torch.Tensor:
    """Dequantise K (half: 0) or V (1) of slots: [slots, kv_heads, head_dim] in fp64."""
    values, scale = stored_values(layer_impl, cache, half, slot)
    return values.double() * scale.double()


def stored_values(layer_impl, cache: torch.Tensor, half: int, slot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the cache holds for K (half: 0) or V (1) of slots, and the scale, which broadcasts to it."""
    page = cache.shape[2]
    k, v, *scales = layer_impl.views(cache)
    values, scale = gather((k, v)[half], scales[half], slot // page, slot % page, "HND")
    if scale is None:
        return values, torch.ones((), device=slot.device)
    return values, scale


def assert_stored(layer_impl, cache: torch.Tensor, half: int, slot: torch.Tensor, x: torch.Tensor) -> None:
    """K (half: 0) or V (1) of the slots is x, rounded to the cache's format within its range."""
    values, scale = stored_values(layer_impl, cache, half, slot)
    read, x, scale, kv_format = values.double() * scale.double(), x.double(), scale.double(), layer_impl.kv_format
    if kv_format == "bf16":
        assert torch.equal(read, x)
        return
    if kv_format == "int8":
        largest = x.abs().amax(-1, keepdim=True) / INT8_LARGEST
        assert torch.allclose(scale, largest, rtol=1e-6, atol=0)
    largest = E4M3_LARGEST if kv_format == "e4m3" else INT8_LARGEST
    x = (x / scale).clamp(-largest, largest) * scale
    rounding = x.abs() / 16 + scale / 1024 if kv_format == "e4m3" else scale * 0.5001
    assert ((read - x).abs() <= rounding).all()
