"""Quality of frames: PSNR and SSIM by scikit-image with an explicit range, and artefacts. Imports scikit-image late."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from flashinfer_patches.errors import Problem

MAX_DB = 100.0  # of frames that are equal
# SSIM as in Wang et al. (2004): the mean over the colours.
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
# Floors, as shares of the range: the mean above black, the spread of pixels, the change from frame to frame.
BLACK, FLAT, FROZEN = 0.005, 0.01, 0.001
MOVING = 0.01  # change of the truth from which on a frozen frame is an artefact


class Frames(NamedTuple):
    """pixels: [clips, frames, colours, height, width], finite and within low to high."""

    pixels: np.ndarray
    low: float
    high: float

    @property
    def range(self) -> float:
        return self.high - self.low

    def since(self, context: int) -> "Frames":
        return self._replace(pixels=self.pixels[:, context:])


def load(path: Path) -> Frames:
    """Read the tensors `frames` and `range` (low, high) of a file. Raises ValueError for pixels out of range."""
    tensors = load_file(path)
    low, high = map(float, tensors["range"])
    frames = Frames(tensors["frames"].astype(np.float64), low, high)
    if not (np.isfinite(frames.pixels).all() and low <= frames.pixels.min() and frames.pixels.max() <= high):
        raise ValueError(f"{path.name} has pixels that are not finite, or not in {low:g} to {high:g}")
    return frames


def check_comparable(frames: Frames, truth: Frames) -> None:
    """Raise ValueError for frames of another number, size or range."""
    if frames.pixels.shape != truth.pixels.shape or (frames.low, frames.high) != (truth.low, truth.high):
        sides = (f"{x.pixels.shape} in {x.low:g} to {x.high:g}" for x in (frames, truth))
        raise ValueError("PSNR of frames of another size or range: got {}, expected {}".format(*sides))


def psnr(frames: Frames, truth: Frames) -> np.ndarray:
    """PSNR of each frame in dB, [clips, frames]; at most MAX_DB. Raises ValueError, Problem("software")."""
    check_comparable(frames, truth)
    metrics = _metrics()
    with np.errstate(divide="ignore"):
        values = _by_frame(
            lambda image, true: metrics.peak_signal_noise_ratio(true, image, data_range=truth.range), frames, truth
        )
    return np.minimum(values, MAX_DB)


def ssim(frames: Frames, truth: Frames) -> np.ndarray:
    """SSIM of each frame, [clips, frames]. Raises ValueError, Problem("software")."""
    check_comparable(frames, truth)
    metrics = _metrics()
    return _by_frame(
        lambda image, true: metrics.structural_similarity(true, image, data_range=truth.range, **SSIM), frames, truth
    )


def artefacts(frames: Frames, truth: Frames) -> dict[str, int]:
    """Count black, flat and frozen frames, where the truth is none of them."""
    check_comparable(frames, truth)
    counts = {}
    for name, image, true, floor, normal in (
        ("black", _brightness(frames), _brightness(truth), BLACK, BLACK),
        ("flat", _spread(frames), _spread(truth), FLAT, FLAT),
        ("frozen", _change(frames), _change(truth), FROZEN, MOVING),
    ):
        counts[name] = int(((image < floor) & (true >= normal)).sum())
    return counts


def _brightness(frames: Frames) -> np.ndarray:
    return (frames.pixels.mean((2, 3, 4)) - frames.low) / frames.range


def _spread(frames: Frames) -> np.ndarray:
    return frames.pixels.std((3, 4)).max(2) / frames.range


def _change(frames: Frames) -> np.ndarray:
    return np.abs(np.diff(frames.pixels, axis=1)).mean((2, 3, 4)) / frames.range


def _by_frame(metric, frames: Frames, truth: Frames) -> np.ndarray:
    pairs = zip(frames.pixels, truth.pixels, strict=True)
    return np.array([[metric(*images) for images in zip(*clips, strict=True)] for clips in pairs])


def _metrics():
    try:
        from skimage import metrics
    except ImportError as error:
        message = f"quality of frames needs scikit-image: {error}"
        raise Problem("software", message, "pip install --no-deps --require-hashes -r locks/world-model.txt") from error
    return metrics
