"""Two-step sampling of a frame over a cache: noise 1 -> 0.25 -> 0."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from lowp.static_cache import StaticCache, attend
from world.model import WorldModel, untimed
from world.plan import SDPA

Denoise = Callable[..., torch.Tensor]


def make_denoise(
    model: WorldModel, cache: StaticCache, backend: str, clock=untimed, attend_layer: Callable = attend
) -> Denoise:
    """Return denoise(noisy, noise, controls): the model over the cache, for one frame of each sequence.

    It returns the latents without noise, and commits the frame where the cache's updates are enabled. noisy: [batch,
    1, 3, latent, latent]; noise: [batch, 1]; controls: [batch, 1, CONTROLS]. attend_layer: `attend`, or it compiled.
    """

    def attention(layer, q, k, v):
        if backend == SDPA:
            with clock("dequantise"):
                past_k, past_v = cache.get(layer, k, v)
            with clock("attention"):
                mask = cache.written(layer)[None, None, None]
                output = F.scaled_dot_product_attention(q, past_k, past_v, attn_mask=mask)
        else:
            with clock("attention"):
                output = attend_layer(q, cache, layer, k, v, backend)
        with clock("quantise") if cache.updates_enabled else nullcontext():
            cache.update(k, v, layer)
        return output

    def denoise(noisy, noise, controls):
        position = (cache.get_offset(0) // model.config.frame_tokens).view(1)
        return model(noisy, noise, controls, position, attention, clock)

    return denoise


def move(noisy: torch.Tensor, denoised: torch.Tensor, noise: float, next_noise: float) -> torch.Tensor:
    """Return the latents at the next noise, along the velocity (noisy - denoised) / noise."""
    return noisy - (noise - next_noise) * (noisy - denoised) / noise
