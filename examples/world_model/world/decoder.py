"""Frames to latents, by averages of 2 x 2 pixels, and back, by a small network."""

import torch
import torch.nn.functional as F
from torch import nn

from world.config import Config


def encode(frames: torch.Tensor, latent: int) -> torch.Tensor:
    """Return the latents [batch, frames, 3, latent, latent] of frames [batch, frames, 3, side, side]."""
    return F.avg_pool2d(frames.flatten(0, 1), frames.shape[-1] // latent).unflatten(0, frames.shape[:2])


class Decoder(nn.Module):
    """Latents to frames: convolutions at the size of the latents, then pixels out of channels."""

    def __init__(self, config: Config):
        super().__init__()
        self.factor = config.frame // config.latent
        self.conv_in = nn.Conv2d(3, config.decoder, 3, padding=1)
        self.conv_mid = nn.Conv2d(config.decoder, config.decoder, 3, padding=1)
        self.conv_out = nn.Conv2d(config.decoder, 3 * self.factor**2, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """latents: [batch, frames, 3, latent, latent]. Return frames in [-1, 1], [batch, frames, 3, side, side]."""
        x = latents.flatten(0, 1)
        h = F.gelu(self.conv_mid(F.gelu(self.conv_in(x), approximate="tanh")), approximate="tanh")
        detail = F.pixel_shuffle(self.conv_out(h), self.factor)
        smooth = F.interpolate(x, scale_factor=float(self.factor), mode="nearest")
        return (smooth + detail).clamp(-1, 1).unflatten(0, latents.shape[:2])
