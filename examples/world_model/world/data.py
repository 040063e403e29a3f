"""Clips of a synthetic world: shapes on a torus, seen by a camera that the mouse moves.

Frame f follows from frame f - 1 and the controls of f: the mouse moves the view by up to a quarter of the frame, the
shapes drift slowly on their own, the left button makes them larger and the right one exchanges their colours.
"""

from dataclasses import dataclass

import torch

from world.config import CONTROLS

MOUSE_STEPS = torch.tensor([-8.0, 0.0, 8.0])  # pixels a frame
LARGEST_STEP = 8.0
DRIFT = 0.5  # largest drift, pixels a frame along an axis
RADIUS, LARGE_RADIUS = 4.5, 6.5
COLOURS = torch.tensor([[1.0, 0.1, 0.1], [0.1, 1.0, 0.2], [0.2, 0.3, 1.0]])  # of disc, square and diamond
BACKGROUND = 0.05
MODES = ("clip", "still", "motion")


@dataclass(frozen=True)
class Clips:
    """frames: [clips, frames, 3, side, side] in [-1, 1]. controls: [clips, frames, CONTROLS].

    Controls: mouse x and y as a share of the largest step, left and right button (0 or 1).
    """

    frames: torch.Tensor
    controls: torch.Tensor


def make_clips(seed: int, count: int, frames: int, mode: str = "clip", side: int = 32) -> Clips:
    """Return clips that depend on the seed alone; clip i is the same for every count.

    mode: "clip" (random controls), "still" (no control is touched) or "motion" (the mouse moves on in one direction).
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; expected one of {', '.join(MODES)}")
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in range(count)]
    starts, drifts, controls = [], [], []
    for generator in generators:
        starts.append(torch.rand(1, len(COLOURS), 2, generator=generator) * side)
        drifts.append((torch.rand(1, len(COLOURS), 2, generator=generator) * 2 - 1) * DRIFT)
        controls.append(random_controls(1, frames, generator) if mode == "clip" else steady_controls(frames, mode))
    controls = torch.cat(controls)
    return Clips(render(torch.cat(starts), torch.cat(drifts), controls, side), controls)


def random_clips(count: int, frames: int, side: int, generator: torch.Generator, device="cpu") -> Clips:
    """Return clips for training, drawn from one generator."""
    starts = torch.rand(count, len(COLOURS), 2, generator=generator) * side
    drifts = (torch.rand(count, len(COLOURS), 2, generator=generator) * 2 - 1) * DRIFT
    controls = random_controls(count, frames, generator).to(device)
    return Clips(render(starts.to(device), drifts.to(device), controls, side), controls)


def random_controls(count: int, frames: int, generator: torch.Generator) -> torch.Tensor:
    """Return controls [count, frames, CONTROLS] that are held for a few frames, each for its own time."""
    mouse = MOUSE_STEPS[torch.randint(len(MOUSE_STEPS), (count, frames, 2), generator=generator)] / LARGEST_STEP
    buttons = (torch.rand(count, frames, 2, generator=generator) < 0.3).float()
    fresh = torch.cat([mouse, buttons], -1)
    is_new = torch.rand(count, frames, CONTROLS, generator=generator) < 0.5
    is_new[:, 0] = True
    newest = torch.where(is_new, torch.arange(frames)[None, :, None], 0).cummax(1).values
    return fresh.gather(1, newest)


def steady_controls(frames: int, mode: str) -> torch.Tensor:
    controls = torch.zeros(1, frames, CONTROLS)
    if mode == "motion":
        controls[..., :2] = torch.tensor([0.0, 1.0])
    return controls


def render(starts: torch.Tensor, drifts: torch.Tensor, controls: torch.Tensor, side: int) -> torch.Tensor:
    """Return frames [clips, frames, 3, side, side]. starts, drifts: pixels, [clips, shapes, 2 (x, y)].

    The view of frame 0 is not moved by its controls. The camera moves with the mouse: the shapes go the other way.
    """
    camera = (controls[..., :2] * LARGEST_STEP).cumsum(1) - controls[:, :1, :2] * LARGEST_STEP
    times = torch.arange(controls.shape[1], device=controls.device)[None, :, None, None]
    centres = starts[:, None] + times * drifts[:, None] - camera[:, :, None]
    pixels = torch.arange(side, device=controls.device) + 0.5
    x, y = (wrap(pixels - centres[..., axis, None], side) for axis in (0, 1))  # [clips, frames, shapes, side]
    x, y = x[..., None, :].abs(), y[..., :, None].abs()
    distances = (
        (x[:, :, 0].square() + y[:, :, 0].square()).sqrt(),
        torch.maximum(x[:, :, 1], y[:, :, 1]),
        (x[:, :, 2] + y[:, :, 2]) / 2**0.5,
    )
    radius = torch.where(controls[..., 2] > 0, LARGE_RADIUS, RADIUS)[..., None, None]
    colours = COLOURS.to(controls.device)
    exchanged = controls[..., 3] > 0
    image = torch.full((*controls.shape[:2], 3, side, side), BACKGROUND, device=controls.device)
    for shape, distance in enumerate(distances):
        coverage = (radius - distance + 0.5).clamp(0, 1)[:, :, None]
        colour = torch.where(exchanged[..., None], colours[shape].roll(1), colours[shape])[..., None, None]
        image = image * (1 - coverage) + colour * coverage
    return image * 2 - 1


def wrap(distance: torch.Tensor, side: int) -> torch.Tensor:
    """Return the distance on a circle of length `side`, in [-side / 2, side / 2)."""
    return (distance + side / 2) % side - side / 2
