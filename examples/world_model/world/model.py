"""The causal DiT: denoises the latents of frames, each from its controls and the frames before it.

The model predicts the latents without noise, x; the velocity of the two sampling steps is v = (noisy - x) / noise.
Attention over other frames is a function that the caller passes: masked over a clip in training, over a ring of cached
keys and values in a rollout.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from world.config import CONTROLS, Config
from world.decoder import Decoder
from world.rope import frame_angles, rotate

SKIPPED = ("embed",)  # paths that stay BF16 in `apply_mx`: inputs of few values
NOISE_FREQUENCIES = 16

# (layer, q, k, v) -> output, each [batch, heads, tokens, head_dim]; keys and queries are rotated
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Clock = Callable[[str], object]  # name of a part -> context manager that times it


def untimed(_part: str):
    return nullcontext()


class Embed(nn.Module):
    """Tokens of noisy latents, and the condition of each frame: noise and controls."""

    def __init__(self, config: Config):
        super().__init__()
        self.patches = nn.Linear(config.patch_values, config.dim)
        self.position = nn.Parameter(0.02 * torch.randn(config.frame_tokens, config.dim))
        self.condition_in = nn.Linear(2 * NOISE_FREQUENCIES + 3 * CONTROLS, config.dim)
        self.condition_out = nn.Linear(config.dim, config.dim)

    def forward(self, patches, noise, controls):
        """patches: [batch, frames, frame_tokens, values]; noise: [batch, frames]; controls: [batch, frames, CONTROLS].

        Return tokens [batch, frames, frame_tokens, dim] and conditions [batch, frames, 1, dim].
        """
        frequencies = torch.exp2(torch.arange(NOISE_FREQUENCIES, device=noise.device) / 2)
        angles = noise[..., None].float() * frequencies
        turns = controls.float() * torch.pi
        features = torch.cat([angles.sin(), angles.cos(), controls.float(), turns.sin(), turns.cos()], -1)
        condition = self.condition_out(F.silu(self.condition_in(features.to(self.position.dtype))))[:, :, None]
        return self.patches(patches) + self.position + condition, F.silu(condition)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=1e-6)

    def forward(self, x, angles, attend: Attend):
        """x: [batch, tokens, dim]; angles: of RoPE, fp32 [tokens, head_dim / 2]."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        output = attend(self.layer, q.contiguous(), k.contiguous(), v.contiguous())
        return self.out(output.transpose(1, 2).reshape(batch, tokens, -1))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.modulation = nn.Parameter(torch.zeros(6, config.dim))

    def forward(self, x, modulation, angles, attend: Attend, clock: Clock):
        """x: [batch, frames, frame_tokens, dim]; modulation: [batch, frames, 1, 6, dim], of AdaLN."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (modulation + self.modulation).unbind(-2)
        h = self.attn(modulate(x, shift, scale).flatten(1, 2), angles, attend)
        x = x + gate * h.view_as(x)
        with clock("mlp"):
            h = self.mlp(modulate(x, mlp_shift, mlp_scale))
        return x + mlp_gate * h


class WorldModel(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = Embed(config)
        self.modulation = nn.Linear(config.dim, 6 * config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_modulation = nn.Parameter(torch.zeros(2, config.dim))
        self.final_proj = nn.Linear(config.dim, config.patch_values)
        self.decoder = Decoder(config)
        for block in self.blocks:
            nn.init.constant_(block.modulation[2], 0.1)
            nn.init.constant_(block.modulation[5], 0.1)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, noisy, noise, controls, positions, attend: Attend, clock: Clock = untimed) -> torch.Tensor:
        """Return latents without noise, as `noisy`: [batch, frames, 3, latent, latent].

        noise: [batch, frames]; controls: [batch, frames, CONTROLS]; positions: of the frames in time, int64 [frames].
        """
        x, condition = self.embed(self.to_patches(noisy), noise, controls)
        modulation = self.modulation(condition).unflatten(-1, (6, -1))
        angles = frame_angles(positions, self.config)
        for block in self.blocks:
            x = block(x, modulation, angles, attend, clock)
        x = modulate(x, *self.final_modulation)
        return self.from_patches(self.final_proj(x))

    def to_patches(self, latents: torch.Tensor) -> torch.Tensor:
        """[batch, frames, 3, latent, latent] -> [batch, frames, frame_tokens, patch_values]."""
        grid, patch = self.config.grid, self.config.patch
        split = latents.unflatten(-1, (grid, patch)).unflatten(-3, (grid, patch))
        return split.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)

    def from_patches(self, patches: torch.Tensor) -> torch.Tensor:
        grid, patch = self.config.grid, self.config.patch
        split = patches.unflatten(2, (grid, grid)).unflatten(-1, (3, patch, patch))
        return split.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
