"""PSNR, SSIM and artefacts of frames."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.rollout import quality
from bench.rollout.quality import Frames

pytest.importorskip("skimage", reason="no scikit-image: see locks/world-model.in")
SHAPE = (2, 3, 3, 16, 16)


@pytest.fixture
def truth() -> Frames:
    return Frames(np.random.default_rng(0).uniform(-0.5, 0.5, SHAPE), -1.0, 1.0)


def save_frames(path, frames: Frames) -> None:
    save_file({"frames": frames.pixels, "range": np.array([frames.low, frames.high])}, path)


def changed(frames: Frames, change) -> Frames:
    pixels = frames.pixels.copy()
    change(pixels)
    return frames._replace(pixels=pixels)


def test_psnr_of_a_known_error(truth):
    """10 log10(range^2 / error^2): 26.02 dB for 0.1 of a range of 2, and 20 dB for half the range."""
    shifted = truth._replace(pixels=truth.pixels + 0.1)
    assert quality.psnr(shifted, truth) == pytest.approx(np.full((2, 3), 26.0206), abs=1e-4)
    unit = [Frames(frames.pixels / 2 + 0.5, 0.0, 1.0) for frames in (shifted, truth)]
    assert quality.psnr(*unit) == pytest.approx(np.full((2, 3), 26.0206), abs=1e-4)


def test_equal_frames_have_a_finite_psnr(truth):
    assert (quality.psnr(truth, truth) == quality.MAX_DB).all()
    assert quality.ssim(truth, truth) == pytest.approx(np.ones((2, 3)))


def test_values_are_those_of_each_frame(truth):
    frames = changed(truth, lambda pixels: pixels.__setitem__((1, 2), -pixels[1, 2]))
    for metric in (quality.psnr, quality.ssim):
        different = metric(frames, truth) != metric(truth, truth)
        assert different.tolist() == [[False] * 3, [False, False, True]]


@pytest.mark.parametrize(
    "change",
    [
        lambda frames: Frames(frames.pixels / 2 + 0.5, 0.0, 1.0),
        lambda frames: Frames(frames.pixels * 127.5, 0.0, 255.0),
        lambda frames: frames._replace(pixels=frames.pixels[..., ::2, ::2]),
        lambda frames: frames.since(1),
        lambda frames: frames._replace(pixels=frames.pixels[:1]),
    ],
    ids=["0 to 1", "bytes", "smaller", "fewer frames", "fewer clips"],
)
@pytest.mark.parametrize("metric", [quality.psnr, quality.ssim, quality.artefacts])
def test_frames_of_another_range_or_size_are_refused(truth, change, metric):
    with pytest.raises(ValueError, match="size or range") as caught:
        metric(change(truth), truth)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1.5, -1.001, np.nan, np.inf])
def test_pixels_out_of_their_range_are_refused(tmp_path, truth, value):
    frames = changed(truth, lambda pixels: pixels.__setitem__((0, 0, 0, 0, 0), value))
    save_frames(tmp_path / "x.safetensors", frames)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        quality.load(tmp_path / "x.safetensors")


def test_frames_are_read_back(tmp_path, truth):
    save_frames(tmp_path / "x.safetensors", truth)
    frames = quality.load(tmp_path / "x.safetensors")
    assert (frames.pixels == truth.pixels).all() and frames.range == 2.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda pixels: None, {"black": 0, "flat": 0, "frozen": 0}),
        (lambda pixels: pixels.__setitem__((0, 1), -1.0), {"black": 1, "flat": 1, "frozen": 0}),
        (lambda pixels: pixels.__setitem__((0, 1), 0.25), {"black": 0, "flat": 1, "frozen": 0}),
        (lambda pixels: pixels.__setitem__((1, 2), pixels[1, 1] + 1e-4), {"black": 0, "flat": 0, "frozen": 1}),
        (lambda pixels: pixels.__setitem__((1, 1), pixels[1, 1] * 0.5), {"black": 0, "flat": 0, "frozen": 0}),
    ],
    ids=["none", "black", "flat", "frozen", "faded"],
)
def test_artefacts_are_counted(truth, change, expected):
    assert quality.artefacts(changed(truth, change), truth) == expected


def test_a_still_truth_freezes_nothing(truth):
    still = truth._replace(pixels=np.repeat(truth.pixels[:, :1], 3, 1))
    assert quality.artefacts(still, still)["frozen"] == 0
