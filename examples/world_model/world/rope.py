"""RoPE over three axes, by absolute position: frame in time, row and column of the patch.

Rows and columns turn a whole number of times around the frame, since the world is a torus: patches at opposite edges
are neighbours.
"""

import math

import torch

from world.config import Config

SLOWEST = 64.0  # the lowest frequency in time is 1 / SLOWEST of the highest, 1 radian a frame


def frame_angles(positions: torch.Tensor, config: Config) -> torch.Tensor:
    """Return angles, fp32 [frames * frame_tokens, head_dim / 2]. positions: of the frames in time, int64 [frames]."""
    pairs = config.head_dim // 2
    space_pairs = 3 * pairs // 8
    time_pairs = pairs - 2 * space_pairs
    device = positions.device
    exponents = torch.arange(time_pairs, device=device) / max(1, time_pairs - 1)
    time = positions.float()[:, None] * SLOWEST**-exponents
    turns = 1 + torch.arange(space_pairs, device=device) % (config.grid // 2)
    cells = 2 * math.pi / config.grid * torch.arange(config.grid, device=device)[:, None] * turns
    time = time[:, None].expand(-1, config.frame_tokens, -1)
    rows = cells.repeat_interleave(config.grid, 0).expand(len(positions), -1, -1)
    columns = cells.repeat(config.grid, 1).expand(len(positions), -1, -1)
    return torch.cat([time, rows, columns], -1).flatten(0, 1)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate pairs (i, i + head_dim / 2) of x [batch, heads, tokens, head_dim] in fp32; return x's dtype."""
    first, second = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
