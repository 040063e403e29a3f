"""Counts of magnitudes against direct computations on the values themselves."""

import pytest
import torch

from lowp.formats import quantize
from vllm_launch.scales import magnitudes

HEADS = 3


def states_of(seed: int, tokens: int = 500) -> torch.Tensor:
    """BF16 [1, HEADS, tokens, 64]; each head ten times the one before, with outliers."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(1, HEADS, tokens, 64, generator=random) * torch.tensor([2.0, 20.0, 200.0])[:, None, None]
    states[:, :, 7, 3] *= 40
    return states.bfloat16()


STATES = states_of(1)
COUNTS = magnitudes.count(STATES)
PER_HEAD = STATES.abs().float().transpose(0, 1).reshape(HEADS, -1)


def test_amax_is_exact():
    assert torch.equal(magnitudes.percentile(COUNTS, 100), PER_HEAD.amax(-1))


def test_counts_of_two_texts_add_up():
    later = states_of(2, tokens=33)
    together = magnitudes.count(torch.cat([STATES, later], dim=2))
    assert torch.equal(COUNTS + magnitudes.count(later), together)
    assert (together.sum(-1) == 533 * 64).all()


def test_a_batch_is_counted_like_its_texts():
    pair = torch.cat([STATES, STATES * 2])
    assert torch.equal(magnitudes.count(pair), COUNTS + magnitudes.count(STATES * 2))


@pytest.mark.parametrize("percent", [1e-9, 1, 50, 99, 99.9, 99.99, 100])
def test_a_percentile_is_the_least_magnitude_that_covers_it(percent):
    actual = magnitudes.percentile(COUNTS, percent)
    for head, magnitude in zip(PER_HEAD, actual, strict=True):
        needed = max(1, percent / 100 * len(head))
        assert (head == magnitude).any()
        assert (head <= magnitude).sum() >= needed - 1e-6 > (head < magnitude).sum() - 1


def test_percentiles_rise_with_the_percent():
    values = torch.stack([magnitudes.percentile(COUNTS, percent) for percent in (10, 50, 90, 99, 99.9, 100)])
    assert (values.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.01, 2.5])
def test_saturated_values_are_those_that_quantize_clamps(scale):
    actual = magnitudes.saturated(COUNTS, scale)
    expected = [quantize(head, "e4m3", torch.tensor(scale)).saturated for head in PER_HEAD]
    assert actual.tolist() == [int(count) for count in expected] and actual.sum() > 0


def test_nothing_saturates_with_scales_of_amax():
    scales = magnitudes.e4m3_scales(COUNTS, 100, 1.0, "head")
    assert magnitudes.saturated(COUNTS, scales).tolist() == [0] * HEADS
    assert scales.dtype == torch.float32
    torch.testing.assert_close(scales, PER_HEAD.amax(-1) / 448)


def test_a_scale_covers_its_percentile_and_no_more():
    scales = magnitudes.e4m3_scales(COUNTS, 99.0, 1.0, "head")
    shares = magnitudes.saturated(COUNTS, scales) / COUNTS.sum(-1)
    assert (shares <= 0.01).all() and (shares > 0.005).all()


def test_headroom_multiplies_the_scale():
    narrow, wide = (magnitudes.e4m3_scales(COUNTS, 100, factor, "head") for factor in (1.0, 2.0))
    torch.testing.assert_close(wide, 2 * narrow)


def test_a_scale_for_the_tensor_covers_all_heads_together():
    scale = magnitudes.e4m3_scales(COUNTS, 100, 1.0, "tensor")
    assert scale.shape == (1,)
    torch.testing.assert_close(scale[0], PER_HEAD.max() / 448)
    pooled = magnitudes.e4m3_scales(COUNTS, 99.0, 1.0, "tensor")
    assert 0.005 < magnitudes.saturated(COUNTS, pooled).sum() / COUNTS.sum() <= 0.01


def test_a_head_of_zeros_has_scale_1():
    zeros = magnitudes.count(torch.zeros(1, 2, 4, 64, dtype=torch.bfloat16))
    assert magnitudes.e4m3_scales(zeros, 100, 2.0, "head").tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_counted_apart(value):
    states = STATES.clone()
    states[0, 1, 9, 9] = value
    assert magnitudes.not_finite(COUNTS).tolist() == [0, 0, 0]
    assert magnitudes.not_finite(magnitudes.count(states)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("states", [STATES.float(), STATES.half(), STATES[0]])
def test_other_dtypes_and_shapes_are_refused(states):
    with pytest.raises(TypeError, match="expected BF16 of 4 axes"):
        magnitudes.count(states)
