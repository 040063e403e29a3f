"""The shape of the model, as saved in a checkpoint."""

from dataclasses import dataclass

CONTROLS = 4  # mouse x and y, left and right button
STEP_NOISES = (1.0, 0.25)  # of the two sampling steps; frames are cached with the last one's


@dataclass(frozen=True)
class Config:
    """Sizes of the model. frame, latent, patch: pixels along a side of each.

    global_frames, local_frames: history of a global and of a local layer. Every `global_every`th layer is global.
    """

    layers: int = 16
    dim: int = 96
    heads: int = 3
    mlp: int = 256
    frame: int = 32
    latent: int = 16
    patch: int = 4
    global_frames: int = 8
    local_frames: int = 4
    global_every: int = 4
    decoder: int = 32

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.latent // self.patch

    @property
    def frame_tokens(self) -> int:
        return self.grid**2

    @property
    def patch_values(self) -> int:
        return 3 * self.patch**2

    def history_frames(self, layer: int) -> int:
        return self.global_frames if self.is_global(layer) else self.local_frames

    def is_global(self, layer: int) -> bool:
        return (layer + 1) % self.global_every == 0
