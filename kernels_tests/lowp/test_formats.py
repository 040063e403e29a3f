"""Storage formats: properties of every format, the edges of each range, scales."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lowp.formats import FORMATS, amax_scale, dequantize, quantize
from lowp.formats.table import GRANULARITIES

NAMES = sorted(FORMATS)
PACKED = ["int4", "mxfp4"]
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
WITHIN = st.floats(-120, 120, width=32)
name = st.sampled_from(NAMES)
untimed = settings(deadline=None)  # a busy machine is no failure


def stored(value: float, kv_format: str) -> float:
    return dequantize(quantize(torch.tensor([value] * 2), kv_format).values, None, kv_format)[0].item()


def every_value(kv_format: str) -> torch.Tensor:
    """Every finite value of the format."""
    chosen = FORMATS[kv_format]
    if kv_format in PACKED:
        values = dequantize(torch.arange(16, dtype=torch.uint8), None, kv_format)[::2]
        return values[values.abs() <= chosen.largest]
    bits = torch.arange(2 ** (8 * chosen.bytes), dtype=torch.int32)
    values = bits.to(torch.uint8 if chosen.bytes == 1 else torch.uint16).view(chosen.dtype).float()
    return values[values.isfinite() & (values.abs() <= chosen.largest)]


@pytest.mark.parametrize("kv_format", NAMES)
def test_a_stored_value_survives(kv_format):
    values = every_value(kv_format).repeat(2)
    rounded = quantize(values, kv_format)
    assert torch.equal(dequantize(rounded.values, None, kv_format), values)
    assert rounded.values.nbytes * 8 == FORMATS[kv_format].bits * len(values)
    assert rounded.saturated == 0 and rounded.nan == 0
    assert values.max() == FORMATS[kv_format].largest
    assert values[values > 0].min() == FORMATS[kv_format].smallest


@untimed
@given(name, WITHIN)
def test_the_nearest_value_is_stored(kv_format, x):
    values = every_value(kv_format)
    assert abs(stored(x, kv_format) - x) == (values.double() - x).abs().min()


@untimed
@given(name, FLOAT32, FLOAT32)
def test_order_is_kept(kv_format, x, y):
    low, high = sorted((x, y))
    assert stored(low, kv_format) <= stored(high, kv_format)


@untimed
@given(name, FLOAT32)
def test_sign_is_symmetric(kv_format, x):
    assert stored(-x, kv_format) == -stored(x, kv_format)


@untimed
@given(name, FLOAT32)
def test_error_is_bounded_by_the_step(kv_format, x):
    chosen = FORMATS[kv_format]
    inside = max(-chosen.largest, min(chosen.largest, x))
    bound = max(chosen.smallest / 2, chosen.step / 2 * abs(inside))
    assert abs(stored(x, kv_format) - inside) <= bound


@pytest.mark.parametrize(
    ("value", "expected", "saturated"),
    [(447.0, 448.0, 0), (448.0, 448.0, 0), (449.0, 448.0, 1), (1e4, 448.0, 1), (math.inf, 448.0, 1)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_edge_of_e4m3(value, expected, saturated, sign):
    result = quantize(torch.tensor([sign * value]), "e4m3")
    assert dequantize(result.values).item() == sign * expected
    assert (result.saturated.item(), result.nan.item()) == (saturated, 0)


@pytest.mark.parametrize("kv_format", NAMES)
def test_infinities_and_nan(kv_format):
    chosen = FORMATS[kv_format]
    result = quantize(torch.tensor([math.inf, -math.inf, math.nan, 1.0]), kv_format)
    back = dequantize(result.values, None, kv_format)
    assert back[:2].tolist() == [chosen.largest, -chosen.largest]
    assert math.isnan(back[2]) if chosen.has_nan else back[2] == 0
    assert (result.saturated.item(), result.nan.item()) == (2, 1)


@pytest.mark.parametrize("kv_format", ["e4m3", "e5m2"])
def test_subnormals(kv_format):
    least = FORMATS[kv_format].smallest
    result = [stored(x * least, kv_format) / least for x in (0.5, 0.51, 1.0, 1.5, 2.5, 3.0)]
    assert result == [0, 1, 1, 2, 2, 3]


@untimed
@given(name, st.lists(FLOAT32, min_size=1, max_size=12), st.sampled_from(GRANULARITIES[1:]))
def test_amax_scale_never_saturates(kv_format, values, granularity):
    if granularity not in FORMATS[kv_format].granularities:
        return
    x = torch.nn.functional.pad(torch.tensor(values), (0, 32 - len(values))).view(1, 1, -1)
    scale = amax_scale(x, kv_format, granularity)
    assert (scale.float() >= torch.finfo(torch.float32).tiny).all() and scale.float().isfinite().all()
    assert quantize(x, kv_format, scale).saturated == 0


@pytest.mark.parametrize("kv_format", ["e4m3", "e5m2", "int8"])
def test_a_scale_that_division_rounds_down_is_raised(kv_format):
    x = torch.randn(2000, 1, 16, generator=torch.Generator().manual_seed(0))
    scale = amax_scale(x, kv_format, "token_head")
    assert quantize(x, kv_format, scale).saturated == 0
    plain = x.abs().amax(-1, keepdim=True) / FORMATS[kv_format].largest
    assert quantize(x, kv_format, plain).saturated > 0, "the case that this is about"
    assert torch.allclose(scale, plain, rtol=2**-22, atol=0)


class GpuDivision(TorchDispatchMode):
    """Divide by a number as torch does on a GPU: multiply by its reciprocal in fp32."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.div.Tensor and not isinstance(args[1], torch.Tensor):
            return args[0] * (1 / torch.tensor(args[1], dtype=torch.float32)).item()
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("kv_format", ["e4m3", "e5m2", "int8", "int4"])
def test_a_gpu_has_the_scales_and_codes_of_a_cpu(kv_format):
    """Many values in BF16 are halfway between two codes: a scale off by one bit stores the other code."""
    x = torch.randn(1000, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    scale = amax_scale(x, kv_format, "token_head")
    with GpuDivision():
        same = amax_scale(x, kv_format, "token_head")
        assert torch.equal(quantize(x, kv_format, same).values, quantize(x, kv_format, scale).values)
    assert torch.equal(same, scale)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("tensor", (1, 1, 1, 1)), ("head", (1, 1, 3, 1)), ("token_head", (2, 5, 3, 1)), ("channel", (1, 1, 3, 4))],
)
def test_shape_and_value_of_scales(layout, granularity, shape):
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    want = x.abs().amax([axis for axis in range(4) if shape[axis] == 1], keepdim=True) / 127
    if layout == "HND":
        x, want = x.transpose(1, 2), want.transpose(1, 2)
    scale = amax_scale(x, "int8", granularity, layout)
    assert torch.allclose(scale, want, rtol=2**-22, atol=0)
    error = (dequantize(quantize(x, "int8", scale).values, scale) - x).abs()
    assert (error <= scale * 0.501).all()


def test_scales_of_zeros_and_of_infinities():
    x = torch.tensor([[[0.0, 0.0], [math.inf, 8.96], [math.nan, 0.0]]])
    assert amax_scale(x, "e4m3", "head").flatten().tolist() == pytest.approx([1.0, 0.02, 1.0])


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        (lambda: quantize(torch.ones(1), "fp4"), ValueError, "'fp4' is unknown; expected one of bf16"),
        (lambda: quantize(torch.ones(1, dtype=torch.int32), "e4m3"), TypeError, "torch.int32; expected a floating"),
        (lambda: amax_scale(torch.ones(1, 1, 1), "bf16", "head"), NotImplementedError, "bf16 has no scales"),
        (lambda: amax_scale(torch.ones(1, 1, 1), "int8", "none"), NotImplementedError, "it supports tensor"),
        (lambda: amax_scale(torch.ones(1, 1, 1), "e4m3", "row"), ValueError, "'row' is unknown"),
        (lambda: amax_scale(torch.ones(1, 1, 1), "e4m3", "head", "DHN"), ValueError, "layout 'DHN' is unknown"),
        (lambda: amax_scale(torch.ones(1, 1), "e4m3", "head"), ValueError, "2 axes"),
        (lambda: amax_scale(torch.ones(1, 1, 32), "e4m3", "block"), NotImplementedError, "e4m3 has no scales"),
        (lambda: amax_scale(torch.ones(1, 1, 48), "mxfp8", "block"), ValueError, "head_dim is 48; expected a multiple"),
        (lambda: quantize(torch.ones(3), "mxfp4"), ValueError, "3 values of 4 bits; expected an even number"),
        (lambda: quantize(torch.ones(32), "mxfp8", torch.ones(1)), TypeError, "float32; expected torch.float8_e8m0fnu"),
        (lambda: dequantize(torch.ones(1, dtype=torch.uint8)), ValueError, "expected mxfp4 or int4"),
    ],
)
def test_mistakes_raise(action, error, words):
    with pytest.raises(error, match=words):
        action()


def test_every_format_fits_its_dtype():
    for chosen in FORMATS.values():
        if chosen.dtype not in (torch.int8, torch.uint8):
            info = torch.finfo(chosen.dtype)
            assert (info.max, info.smallest_normal * info.eps) == (chosen.largest, chosen.smallest), chosen.name
            assert chosen.step == info.eps
