"""Frames as PNG and GIF files."""

from pathlib import Path

import torch
from PIL import Image

from world.files import replacing

SCALE = 4  # pixels of a picture for one of a frame
GAP = 2  # pixels between frames side by side


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """Return frames [..., 3, side, side] in [-1, 1] as bytes [..., side, side, 3]."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1)


def side_by_side(columns: list[torch.Tensor]) -> torch.Tensor:
    """Join equally many frames of each column, bytes [frames, side, side, 3], with white gaps."""
    gap = columns[0].new_full((*columns[0].shape[:2], GAP, 3), 255)
    return torch.cat([part for column in columns for part in (column, gap)][:-1], 2)


def picture(image: torch.Tensor) -> Image.Image:
    height, width, _ = image.shape
    return Image.fromarray(image.numpy()).resize((SCALE * width, SCALE * height), Image.Resampling.NEAREST)


def save_gif(columns: list[torch.Tensor], path: Path, fps: int = 12) -> None:
    """Save frames [frames, 3, side, side] of each column side by side, as an endless GIF."""
    images = [picture(image) for image in side_by_side([pixels(frames) for frames in columns])]
    with replacing(path) as part:
        images[0].save(
            part, "GIF", save_all=True, append_images=images[1:], duration=1000 // fps, loop=0, optimize=True
        )


def save_frames(columns: list[torch.Tensor], folder: Path) -> None:
    """Save each frame as a PNG, the columns side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(side_by_side([pixels(frames) for frames in columns])):
        with replacing(folder / f"frame_{number:03}.png") as part:
            picture(image).save(part, "PNG")
