"""Training: runs repeat and resume; the judge refuses a model that draws the background."""

import pytest
import torch
from world import judge, training
from world.config import Config
from world.data import make_clips
from world.decoder import encode

from kernels_tests.examples.world_model.conftest import SMALL

CONFIG = Config(**SMALL)
PLAN = training.Plan(steps=4, clips=2, frames=4)


def train(run: training.Run, steps: int) -> training.Run:
    for _ in range(steps):
        training.step(run)
    return run


def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path):
    straight = train(training.start(CONFIG, PLAN, "cpu"), 4)
    training.save(train(training.start(CONFIG, PLAN, "cpu"), 2), tmp_path / "state.pt")
    resumed = train(training.resume(tmp_path / "state.pt", CONFIG, PLAN, "cpu"), 2)
    assert resumed.losses == straight.losses and len(straight.losses) == 4
    weights = straight.model.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "plan", "message"),
    [(CONFIG, training.Plan(steps=5), "has the plan"), (Config(), PLAN, "has the model")],
)
def test_a_state_of_another_run_is_refused(tmp_path, config, plan, message):
    training.save(training.start(CONFIG, PLAN, "cpu"), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=message):
        training.resume(tmp_path / "state.pt", config, plan, "cpu")


def test_losses_fall():
    run = train(training.start(CONFIG, training.Plan(steps=30, clips=2, frames=4), "cpu"), 30)
    start, end = run.losses[0], run.losses[-1]
    assert all(last < 0.7 * first for first, last in zip(start, end, strict=True))


def test_latents_and_soft_frames_are_averages():
    frames = make_clips(1, 1, 2).frames
    latents = encode(frames, 16)
    assert torch.allclose(latents[0, 0, 0, 3, 5], frames[0, 0, 0, 6:8, 10:12].mean(), atol=1e-6)
    soft = training.soften(latents, torch.tensor([[0.0, 1.0]]))
    assert torch.equal(soft[:, 0], latents[:, 0])
    assert torch.allclose(soft[0, 1, 0, 3, 5], latents[0, 1, 0, 2:5, 4:7].mean(), atol=1e-6)


def test_random_weights_may_not_judge(model):
    measured = judge.measure(model, seed=1, clips=2, frames=8, context=3)
    assert not measured["may_judge"]
    assert measured["psnr_db"].keys() == {
        *("teacher_forced", "free_running", "shuffled_controls", "last_frame", "mean_frame"),
    }


@pytest.mark.parametrize(
    ("drawn", "may_judge"),
    [("truth", True), ("truth without controls", False), ("background", False), ("last frame", False)],
)
def test_the_right_to_judge_is_prediction_that_obeys(model, monkeypatch, drawn, may_judge):
    """`truth without controls`: a rollout that draws the right frames whatever the controls are."""
    controls = make_clips(1, 4, 12).controls

    def stub(model, clips, requested, *, device, context, forced=False):
        truth = clips.frames[:, context:]
        if drawn == "background":
            return torch.full_like(truth, -0.9), {}
        if drawn == "last frame":
            return clips.frames[:, context - 1 : -1], {}
        obeyed = drawn != "truth" or torch.equal(clips.controls, controls)
        return (truth + 0.1).clamp(-1, 1) if obeyed else truth.flip(-1), {}

    monkeypatch.setattr(judge, "rollout", stub)
    assert judge.measure(model, seed=1, clips=4, frames=12, context=4)["may_judge"] == may_judge


def test_psnr_is_of_values_in_minus_1_to_1():
    truth = torch.zeros(1, 2, 3, 4, 4)
    assert torch.allclose(judge.psnr(truth + 0.2, truth), torch.full((1, 2), 20.0), atol=1e-4)
