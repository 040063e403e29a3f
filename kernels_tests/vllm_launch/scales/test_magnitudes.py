"""Counts of magnitudes against direct computations on the values themselves."""

import pytest
import torch

from lowp.formats import quantize
from vllm_launch.scales import magnitudes

HEADS = 3
LARGEST = {"e4m3": 448, "int8": 127}


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


@pytest.mark.parametrize("kv_format", LARGEST)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.01, 2.5])
def test_saturated_values_are_those_that_quantize_clamps(scale, kv_format):
    actual = magnitudes.saturated(COUNTS, scale, kv_format)
    expected = [quantize(head, kv_format, torch.tensor(scale)).saturated for head in PER_HEAD]
    assert actual.tolist() == [int(count) for count in expected] and actual.sum() > 0


@pytest.mark.parametrize("kv_format", LARGEST)
def test_nothing_saturates_with_scales_of_amax(kv_format):
    scales = magnitudes.scales(COUNTS, kv_format, 100, 1.0)
    assert magnitudes.saturated(COUNTS, scales, kv_format).tolist() == [0] * HEADS
    assert scales.dtype == torch.float32
    torch.testing.assert_close(scales, PER_HEAD.amax(-1) / LARGEST[kv_format])


@pytest.mark.parametrize("kv_format", LARGEST)
def test_a_scale_covers_its_percentile_and_no_more(kv_format):
    scales = magnitudes.scales(COUNTS, kv_format, 99.0, 1.0)
    shares = magnitudes.saturated(COUNTS, scales, kv_format) / COUNTS.sum(-1)
    assert (shares <= 0.01).all() and (shares > 0.005).all()


def test_headroom_multiplies_the_scale():
    narrow, wide = (magnitudes.scales(COUNTS, "e4m3", 100, factor) for factor in (1.0, 2.0))
    torch.testing.assert_close(wide, 2 * narrow)


def test_scales_have_the_rows_of_the_counts():
    rows = COUNTS[:, None].expand(HEADS, 2, -1)
    assert torch.equal(magnitudes.scales(rows, "int8", 100, 1.1)[:, 1], magnitudes.scales(COUNTS, "int8", 100, 1.1))


def test_a_head_of_zeros_has_scale_1():
    zeros = magnitudes.count(torch.zeros(1, 2, 4, 64, dtype=torch.bfloat16))
    assert magnitudes.scales(zeros, "e4m3", 100, 2.0).tolist() == [1.0, 1.0]


def turned(keys: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Keys whose pairs (i, i + 32) are turned by an angle for each pair, as at another position."""
    first, second = keys.double().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).bfloat16()


def test_the_norm_of_a_pair_is_the_bound_of_its_channels_at_every_position():
    bound = magnitudes.percentile(magnitudes.count_pairs(STATES), 100).repeat(1, 2)  # [heads, 64]
    largest = torch.zeros_like(bound)
    for step in torch.linspace(0, torch.pi, 101, dtype=torch.float64)[:-1]:
        largest = largest.maximum(turned(STATES, step.expand(32)).float().abs().amax(dim=(0, 2)))
        assert (largest <= bound).all()
    assert (largest >= 0.99 * bound).all()  # and no larger than it must be


def test_the_channels_of_a_position_are_no_bound_of_another():
    """Keys that point along the first channel of each pair at one position point along the second at another."""
    keys = torch.cat([STATES[..., :32], STATES[..., 32:] / 8], dim=-1)
    of_channels = keys.abs().float().amax(dim=(0, 2))
    later = turned(keys, torch.full((32,), torch.pi / 2, dtype=torch.float64)).float().abs().amax(dim=(0, 2))
    assert (later[:, 32:] > 2 * of_channels[:, 32:]).all()


def test_counts_of_pairs_add_up():
    pairs = magnitudes.count_pairs(STATES)
    assert pairs.shape == (HEADS, 32, magnitudes.MAGNITUDES) and (pairs.sum(-1) == 500).all()
    assert torch.equal(magnitudes.count_pairs(torch.cat([STATES, STATES])), 2 * pairs)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_counted_apart(value):
    states = STATES.clone()
    states[0, 1, 9, 9] = value
    assert magnitudes.not_finite(COUNTS).tolist() == [0, 0, 0]
    assert magnitudes.not_finite(magnitudes.count(states)).tolist() == [0, 1, 0]
    assert magnitudes.not_finite(magnitudes.count_pairs(states)).nonzero().tolist() == [[1, 9]]


@pytest.mark.parametrize("states", [STATES.float(), STATES.half(), STATES[0]])
def test_other_dtypes_and_shapes_are_refused(states):
    for count in (magnitudes.count, magnitudes.count_pairs):
        with pytest.raises(TypeError, match="expected BF16 of 4 axes"):
            count(states)
