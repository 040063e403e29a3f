"""Whether a model may judge: does it predict frames, and does it obey the controls?"""

from dataclasses import replace

import torch

from world.data import make_clips
from world.model import WorldModel
from world.rollout import rollout
from world.settings import BF16, Requested

BEATS_DB, LOSES_DB = 3.0, 1.0  # over the last and the mean frame; with the controls of other clips


def psnr(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of each frame in dB, of values in [-1, 1]."""
    error = (images - truth).square().flatten(-3).mean(-1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def measure(model: WorldModel, *, seed: int, clips: int = 8, frames: int = 64, context: int = 8, device="cpu") -> dict:
    """Return mean PSNRs in dB of a BF16 rollout and of what it must beat, and whether it may judge."""
    truth = make_clips(seed, clips, frames, side=model.config.frame)
    shuffled = replace(truth, controls=truth.controls.roll(1, 0))
    target = truth.frames[:, context:]
    options = {"device": device, "context": context}
    images = {
        "teacher_forced": rollout(model, truth, Requested(BF16), forced=True, **options)[0],
        "free_running": rollout(model, truth, Requested(BF16), **options)[0],
        "shuffled_controls": rollout(model, shuffled, Requested(BF16), forced=True, **options)[0],
        "last_frame": truth.frames[:, context - 1 : -1],
        "mean_frame": truth.frames.mean((0, 1)).expand_as(target),
    }
    values = {name: psnr(frames, target).mean().item() for name, frames in images.items()}
    beats = values["teacher_forced"] - max(values["last_frame"], values["mean_frame"])
    loses = values["teacher_forced"] - values["shuffled_controls"]
    return {
        "psnr_db": values,
        "beats_copies_by_db": beats,
        "loses_with_shuffled_controls_db": loses,
        "may_judge": beats >= BEATS_DB and loses >= LOSES_DB,
        "clips": clips,
        "frames": frames,
        "context": context,
        "seed": seed,
    }
