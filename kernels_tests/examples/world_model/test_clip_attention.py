"""Attention over a clip in training equals attention over rings in a rollout."""

import copy

import pytest
import torch
from world import clip_attention as masks
from world.config import CONTROLS
from world.sampling import make_denoise

from lowp.static_cache import StaticCache

FRAMES = 8  # more than two windows of the global layer
BOUND = 1e-4
MUTANT_BOUND = 1e-2


def clip_and_ring_error(model) -> float:
    """Return the largest difference between a clip's two streams and the same frames over a cache, in fp32."""
    model = copy.deepcopy(model).float()
    config = model.config
    generator = torch.Generator().manual_seed(3)
    shape = (2, FRAMES, 3, config.latent, config.latent)
    history, draft = torch.randn(2, *shape, generator=generator)
    controls = torch.rand(2, FRAMES, CONTROLS, generator=generator)
    noise = torch.tensor([0.25] * FRAMES + [1.0] * FRAMES).expand(2, -1)
    positions = torch.arange(FRAMES).repeat(2)
    attend = masks.clip_attention(config, FRAMES)
    with torch.no_grad():
        clip = model(torch.cat([history, draft], 1), noise, controls.repeat(1, 2, 1), positions, attend)
    windows = [config.frame_tokens * config.history_frames(layer) for layer in range(config.layers)]
    cache = StaticCache(
        config.layers, 2, config.heads, config.head_dim, config.frame_tokens, windows, torch.float32, "cpu"
    )
    denoise = make_denoise(model, cache, "reference")
    errors = []
    for number in range(FRAMES):
        frame = slice(number, number + 1)
        for updates, noisy, level, stream in ((False, draft, 1.0, 1), (True, history, 0.25, 0)):
            cache.updates_enabled = updates
            with torch.no_grad():
                ring = denoise(noisy[:, frame], torch.full((2, 1), level), controls[:, frame])
            errors.append((ring[:, 0] - clip[:, stream * FRAMES + number]).abs().max().item())
    return max(errors)


def test_a_clip_equals_rings(model):
    assert clip_and_ring_error(model) < BOUND


@pytest.mark.parametrize("change", [1, -1])
def test_a_window_of_another_length_fails(model, monkeypatch, change):
    clip_mask = masks.clip_mask
    monkeypatch.setattr(masks, "clip_mask", lambda frames, history, *sizes: clip_mask(frames, history + change, *sizes))
    assert clip_and_ring_error(model) > MUTANT_BOUND


def test_a_draft_sees_no_other_draft_and_no_frame_sees_the_future():
    frames, tokens = 4, 2
    mask = masks.clip_mask(frames, 2, tokens)
    seen = mask.view(2 * frames, tokens, 2 * frames, tokens)
    assert (seen.all((1, 3)) == seen.any(3).any(1)).all(), "frames are seen whole"
    visible = [row.nonzero()[:, 0].tolist() for row in seen.all((1, 3))]
    assert visible == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [4], [0, 5], [0, 1, 6], [1, 2, 7]]
