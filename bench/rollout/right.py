"""The model's right to judge: a model that predicts nothing passes every gate."""

import numpy as np

from bench.rollout import quality
from bench.rollout.intervals import Figure, figure
from bench.rollout.quality import Frames
from bench.rollout.result import Right
from bench.rollout.sweep import Judge
from flashinfer_patches.errors import Problem

REFERENCE, SHUFFLED, LAST, MEAN = "reference", "shuffled controls", "last frame", "mean frame"
COPIES = LAST, MEAN


def measure(reference: Frames, shuffled: Frames, clips: Frames, context: int) -> Right:
    """PSNR of the reference with the true history, of it with the controls of other clips, and of copied frames."""
    truth = clips.since(context)
    mean_frame = clips.pixels.mean((0, 1), keepdims=True)
    guesses = {
        REFERENCE: reference,
        SHUFFLED: shuffled,
        LAST: clips._replace(pixels=clips.pixels[:, context - 1 : -1]),
        MEAN: clips._replace(pixels=np.broadcast_to(mean_frame, truth.pixels.shape)),
    }
    psnr: dict[str, Figure] = {
        name: figure(quality.psnr(guess, truth).mean(1).tolist()) for name, guess in guesses.items()
    }
    value = psnr[REFERENCE].value
    copied = max(psnr[name].value for name in COPIES)
    return Right(psnr=psnr, beats_db=value - copied, loses_db=value - psnr[SHUFFLED].value)


def check(right: Right, judge: Judge) -> None:
    """Raise Problem("gate") for a model that may not judge."""
    if right.beats_db >= judge.beats_db and right.loses_db >= judge.loses_db:
        return
    message = (
        f"the model may not judge: BF16 beats copied frames by {right.beats_db:.2f} dB (at least {judge.beats_db:g}),"
        f" and loses {right.loses_db:.2f} dB with shuffled controls (at least {judge.loses_db:g})"
    )
    raise Problem("gate", message, "train it longer, or name another --checkpoint: drops of this one say nothing")
