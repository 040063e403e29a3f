"""Block scales and packed codes of `lowp.formats`: bytes, nibbles, E8M0; torchao's emulation as a second opinion."""

import math

import pytest
import torch

from kernels_tests.lowp.mx_models import needs_torchao
from lowp.formats import FORMATS, amax_scale, convert, dequantize, packed, quantize

BLOCK_FORMATS = ["mxfp8", "e5m2", "mxfp4", "int4"]
MX_FORMATS = BLOCK_FORMATS[:3]
# relL2 of rows of 1024 normal values, stored and read back; measured: 0.029, 0.057, 0.12, 0.17 in the worst row.
BOUNDS = {"mxfp8": 0.032, "e5m2": 0.064, "mxfp4": 0.14, "int4": 0.19}


def draw(*shape):
    """Normal values, each row times a power of two."""
    random = torch.Generator().manual_seed(3)
    power = torch.randint(-20, 20, (*shape[:-1], 1), generator=random)
    return torch.randn(shape, generator=random) * torch.exp2(power.float())


def round_trip(x, kv_format, granularity="block"):
    scale = amax_scale(x, kv_format, granularity)
    return dequantize(quantize(x, kv_format, scale).values, scale, kv_format)


def rel_l2(x, kv_format):
    """The worst row's."""
    return ((round_trip(x, kv_format) - x).norm(dim=-1) / x.norm(dim=-1)).max().item()


@pytest.mark.parametrize("kv_format", BLOCK_FORMATS)
def test_bytes_of_codes_and_scales(kv_format):
    x = draw(2, 3, 5, 64)
    scale = amax_scale(x, kv_format, "block")
    stored = quantize(x, kv_format, scale)
    assert stored.values.nbytes == x.numel() * FORMATS[kv_format].bits // 8
    assert scale.shape == (2, 3, 5, 2) and scale.nbytes == x.numel() // 32
    assert stored.saturated == 0 and stored.nan == 0


@pytest.mark.parametrize("kv_format", BLOCK_FORMATS)
def test_the_scale_is_the_least_power_of_two_that_saturates_nothing(kv_format):
    x = draw(1, 500, 4, 64)
    scale = amax_scale(x, kv_format, "block").float()
    amax = x.unflatten(-1, (2, 32)).abs().amax(-1)
    assert (amax <= scale * FORMATS[kv_format].largest).all() and (amax > scale / 2 * FORMATS[kv_format].largest).all()
    assert (torch.frexp(scale).mantissa == 0.5).all()


@pytest.mark.parametrize("kv_format", BLOCK_FORMATS)
def test_the_scale_at_the_edge_of_a_power(kv_format):
    largest = FORMATS[kv_format].largest
    above = torch.tensor(largest).nextafter(torch.tensor(math.inf)).item()
    for value, expected in ((largest, 1.0), (above, 2.0), (largest / 2, 0.5), (0.0, 1.0)):
        x = torch.zeros(1, 1, 32)
        x[..., 7] = -value
        assert amax_scale(x, kv_format, "block").float().item() == expected
    x[..., :2] = torch.tensor([math.inf, math.nan])
    assert amax_scale(x, kv_format, "block").float().item() == 1.0


@pytest.mark.parametrize("kv_format", BLOCK_FORMATS)
def test_each_block_has_its_own_scale(kv_format):
    x = draw(1, 64, 4, 64)
    x[..., 32:] *= 1e6
    assert torch.equal(round_trip(x, kv_format)[..., :32], round_trip(x[..., :32], kv_format))
    assert rel_l2(x, kv_format) < 2 * BOUNDS[kv_format]


def test_int4_with_a_scale_per_token_and_head():
    x = draw(1, 64, 4, 64)
    scale = amax_scale(x, "int4", "token_head")
    stored = quantize(x, "int4", scale)
    assert scale.dtype == torch.float32 and scale.shape == (1, 64, 4, 1) and stored.saturated == 0
    assert ((dequantize(stored.values, scale, "int4") - x).abs() <= 0.501 * scale).all()


def test_the_first_value_is_in_the_low_bits():
    assert quantize(torch.tensor([1.0, -7.0]), "int4").values.tolist() == [0x91]
    assert quantize(torch.tensor([1.0, -6.0]), "mxfp4").values.tolist() == [0xF2]
    assert dequantize(torch.tensor([0x91], dtype=torch.uint8), None, "int4").tolist() == [1, -7]


def test_e2m1_rounds_ties_to_the_even_code():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.1])
    result = quantize(torch.cat([ties, -ties]), "mxfp4")
    expected = [0, 1, 1, 2, 2, 4, 4, 6]
    assert dequantize(result.values, None, "mxfp4").tolist() == [*expected, *(-x for x in expected)]
    assert result.saturated == 2


@pytest.mark.parametrize("kv_format", BLOCK_FORMATS)
def test_error_of_a_normal_distribution(kv_format):
    x = torch.randn(1, 64, 4, 1024, generator=torch.Generator().manual_seed(5))
    assert BOUNDS[kv_format] / 2 < rel_l2(x, kv_format) < BOUNDS[kv_format]


@pytest.mark.parametrize("exponent", [-1, 1])
@pytest.mark.parametrize("kv_format", BLOCK_FORMATS)
def test_a_scale_with_a_wrong_exponent_shows(monkeypatch, exponent, kv_format):
    right = convert._power_of_two

    def wrong(*arguments):
        return (right(*arguments).view(torch.uint8) + exponent).view(torch.float8_e8m0fnu)

    monkeypatch.setattr(convert, "_power_of_two", wrong)
    with pytest.raises(AssertionError):
        test_the_scale_is_the_least_power_of_two_that_saturates_nothing(kv_format)


def test_a_scale_decoded_to_twice_its_power_fails(monkeypatch):
    right = convert._factor
    x = draw(1, 8, 4, 64)
    scale = amax_scale(x, "mxfp8", "block")
    stored = quantize(x, "mxfp8", scale)
    monkeypatch.setattr(convert, "_factor", lambda scale: 2 * right(scale))
    assert (dequantize(stored.values, scale) - x).norm() > 0.9 * x.norm()


@pytest.mark.parametrize("kv_format", ["int4", "mxfp4"])
def test_swapped_nibbles_show(monkeypatch, kv_format):
    right = packed.pack
    monkeypatch.setattr(packed, "pack", lambda codes: (right(codes) << 4) | (right(codes) >> 4))
    assert rel_l2(draw(1, 8, 4, 64), kv_format) > 1
    with pytest.raises(AssertionError):
        test_the_first_value_is_in_the_low_bits()


@needs_torchao
@pytest.mark.parametrize("kv_format", MX_FORMATS)
@pytest.mark.parametrize("mode", ["RCEIL", "FLOOR"])
def test_torchao_stores_the_same(kv_format, mode):
    """RCEIL: codes and scales bit for bit. FLOOR: ours is that scale or, where OCP's clamps values, twice it."""
    from torchao.prototype.mx_formats import mx_tensor

    dtype = {"mxfp4": torch.float4_e2m1fn_x2}.get(kv_format, FORMATS[kv_format].dtype)
    x = draw(1, 500, 4, 64).bfloat16()
    their_scale, their_codes = mx_tensor.to_mx(x, dtype, 32, getattr(mx_tensor.ScaleCalculationMode, mode))
    scale = amax_scale(x, kv_format, "block")
    ratio = scale.float() / their_scale.float()
    if mode == "FLOOR":
        clamped = quantize(x, kv_format, their_scale).saturated
        assert set(ratio.unique().tolist()) == {1.0, 2.0} and clamped > 0
        theirs = quantize(x, kv_format, their_scale).values
        assert torch.equal(theirs.view(torch.uint8), their_codes.view(torch.uint8))
        return
    assert (ratio == 1).all()
    assert torch.equal(quantize(x, kv_format, scale).values.view(torch.uint8), their_codes.view(torch.uint8))
