"""Clips obey their controls, and depend on their seed alone."""

import pytest
import torch
from world.data import LARGEST_STEP, make_clips, render

SIDE = 32
STARTS = torch.tensor([[[6.0, 6.0], [20.0, 9.0], [12.0, 24.0]]])


def frames(controls, drifts=None) -> torch.Tensor:
    """Return the frames of one clip. controls: [frames][4]."""
    drifts = torch.zeros_like(STARTS) if drifts is None else drifts
    return render(STARTS, drifts, torch.tensor(controls, dtype=torch.float32)[None], SIDE)[0]


@pytest.mark.parametrize("mouse", [(1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)])
def test_the_mouse_moves_the_view(mouse):
    first, second = frames([(0, 0, 0, 0), (*mouse, 0, 0)])
    step = [round(-LARGEST_STEP * value) for value in reversed(mouse)]
    assert torch.allclose(second, first.roll(step, (-2, -1)), atol=1e-4)
    assert not torch.allclose(second, first, atol=0.5)


def test_shapes_drift_without_controls():
    drifts = torch.ones_like(STARTS)
    first, second = frames([(0, 0, 0, 0)] * 2, drifts)
    assert torch.allclose(second, first.roll((1, 1), (-2, -1)), atol=1e-4)


def test_the_left_button_makes_shapes_larger():
    first, second = frames([(0, 0, 0, 0), (0, 0, 1, 0)])
    assert (second > 0).float().sum() > 1.5 * (first > 0).float().sum()


def test_the_right_button_exchanges_colours():
    first, second = frames([(0, 0, 0, 0), (0, 0, 0, 1)])
    assert torch.allclose(second, first.roll(1, 0), atol=1e-5)


def test_controls_of_a_frame_act_on_it_and_not_before():
    still = [(0, 0, 0, 0)] * 4
    moved = [*still[:2], (1, 0, 1, 1), *still[3:]]
    equal = [torch.equal(a, b) for a, b in zip(frames(still), frames(moved), strict=True)]
    assert equal == [True, True, False, False], "the view stays where the mouse moved it"


def test_a_clip_depends_on_its_seed_and_number_alone():
    three, two = make_clips(5, 3, 6), make_clips(5, 2, 6)
    assert torch.equal(three.frames[:2], two.frames) and torch.equal(three.controls[:2], two.controls)
    assert not torch.equal(three.frames[0], three.frames[1])
    assert not torch.equal(make_clips(6, 1, 6).frames, two.frames[:1])


@pytest.mark.parametrize(("mode", "distinct"), [("still", 1), ("motion", 1)])
def test_steady_modes_hold_their_controls(mode, distinct):
    clips = make_clips(5, 2, 6, mode)
    assert len({tuple(controls) for controls in clips.controls.flatten(0, 1).tolist()}) == distinct
    assert (clips.controls[..., :2].abs().sum() > 0) == (mode == "motion")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode 'walk' is unknown; expected one of clip, still, motion"):
        make_clips(5, 1, 6, "walk")
