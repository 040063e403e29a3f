"""What a cache counts and reports: saturation, NaN, scales over time, bytes, times."""

import pytest
import torch

from kernels_tests.lowp.static_cache.frames import BATCH, FRAME, FRAME_TOKENS, HEADS, LAYERS, frame, plain, quantized
from lowp.formats import FORMATS, amax_scale
from lowp.static_cache.report import check_finite
from lowp.static_cache.store import SCALES, decode


def committed(cache, frames: int = 3, scale: float = 1.0) -> list[torch.Tensor]:
    """Commit frames to all layers; return V of each."""
    values = []
    for number in range(frames):
        _, k, v = frame(number, cache.dtype, scale)
        for layer in LAYERS:
            cache.update(k, v, layer)
        values.append(v)
    return values


def test_saturation_is_counted():
    cache = quantized(v_format="e4m3", v_scale="none")
    values = torch.stack(committed(cache, scale=500.0))
    side = cache.stats()["layers"][0]["v"]
    assert side["clamped"] == (values.abs() > 448).sum() > 0
    assert side["at_limit"] >= side["clamped"]
    cache.reset()
    side = cache.stats()["layers"][0]["v"]
    assert (side["clamped"], side["at_limit"]) == (0, 0)


def test_a_scale_per_token_clamps_nothing():
    cache = quantized(k_format="int8", v_format="int8")
    committed(cache)
    for side in (cache.stats()["layers"][0][name] for name in "kv"):
        assert side["clamped"] == 0 and side["at_limit"] >= 3 * BATCH * HEADS * FRAME_TOKENS


@pytest.mark.parametrize("make", [plain, lambda: quantized(k_format="int8"), lambda: quantized(k_format="e4m3")])
def test_nan_and_infinities_are_counted_and_never_stored(make):
    cache = make()
    committed(cache, frames=1)
    check_finite(cache.stats())
    _, k, v = frame(1)
    k[0, 0, 0, :3] = torch.nan
    k[0, 1, 2, 3] = -torch.inf
    cache.update(k, v, 1)
    counts = cache.stats()["layers"][1]["k"]
    assert (counts["nan"], counts["inf"]) == (3, 1)
    assert all(decode(store).isfinite().all() for store in (cache.rings[1].k, cache.rings[1].v))
    with pytest.raises(ValueError, match=r"layer 1: K had 3 NaN and 1 infinities in 2 frames; expected finite values"):
        check_finite(cache.stats())


def test_ema_scales_follow_the_running_amax_and_slots_keep_theirs():
    cache = quantized(v_format="int8", v_scale="ema")
    values = committed(cache, frames=3)
    running, scales = None, []
    for v in values:
        amax = v.abs().amax((2, 3))
        running = amax if running is None else 0.99 * running + 0.01 * amax
        scales.append(running / 127)
    ring = cache.rings[0]
    stored = ring.v.scale[..., 0][:, :, : 3 * FRAME_TOKENS]
    expected = torch.stack(scales, -1).repeat_interleave(FRAME_TOKENS, -1)
    assert torch.allclose(stored, expected, rtol=1e-6)
    exact = torch.cat(values, 2)
    clamped = exact.abs() > 127 * expected[..., None]
    decoded = decode(ring.v)[:, :, : 3 * FRAME_TOKENS]
    assert ((decoded - exact).abs() <= expected[..., None] * 0.501)[~clamped].all()
    assert cache.stats()["layers"][0]["v"]["clamped"] == clamped.sum() > 0
    report = cache.stats()["layers"][0]["v"]["scale"]
    assert report["min"] == stored.min() and report["max"] == stored.max()
    assert report["mean"] == pytest.approx(stored.mean().item(), rel=1e-5)


@pytest.mark.parametrize("scale", ["token_head", "ema"])
def test_a_percentile_clips_outliers_of_v_alone(scale):
    v = torch.full(FRAME, 0.5)
    v[..., 0] = 100.0
    k = v.clone()
    cache = quantized(k_format="int8", v_format="int8", k_scale=scale, v_scale=scale, v_percentile=95.0)
    cache.update(k, v, 0)
    k_past, v_past = cache.get(0)
    assert (v_past[:, :, :FRAME_TOKENS] == 0.5).all(), "outliers are clamped"
    assert (k_past[:, :, :FRAME_TOKENS, 0] == 100).all()
    assert cache.stats()["layers"][0]["v"]["clamped"] == v.numel() // FRAME[-1]


@pytest.mark.parametrize(
    ("formats", "ratio"),
    [
        ({"v_format": "int8"}, 0.766),
        ({"k_format": "int8", "v_format": "int8"}, 0.531),
        ({"v_format": "mxfp8", "v_scale": "block"}, 0.758),
        ({"k_format": "e5m2", "k_scale": "block", "v_format": "mxfp8", "v_scale": "block"}, 0.516),
        ({"v_format": "mxfp4", "v_scale": "block"}, 0.633),
        ({"k_format": "int4", "v_format": "int4"}, 0.281),
        ({"v_format": ["e4m3", "mxfp4"], "v_scale": ["none", "block"]}, (2 * 0.75 + 0.633) / 3),
        ({"v_format": "e4m3", "v_scale": "none"}, 0.75),
        ({"k_format": "e5m2", "k_scale": "none", "v_format": "e4m3", "v_scale": "none"}, 0.5),
        ({"v_format": None}, 1.0),
    ],
)
def test_bytes_of_the_window(formats, ratio):
    memory = quantized(torch.bfloat16, **formats).memory()
    assert memory["ratio"] == pytest.approx(ratio, abs=1e-3)
    assert sum(memory["by_format"].values()) == memory["window_bytes"] == sum(x["bytes"] for x in memory["layers"])
    assert memory["tail_bytes"] == (0 if ratio < 1 else len(LAYERS) * 2 * 2 * torch.Size(FRAME).numel())
    assert memory["total_bytes"] >= memory["window_bytes"] + memory["tail_bytes"]
    assert memory["allocated"] is None, "a CPU reports none"


def test_gets_and_their_bytes():
    cache = quantized(torch.bfloat16, v_format="int8")
    _, k, v = frame(0, torch.bfloat16)
    cache.get(0, k, v)
    layers = cache.stats()["layers"]
    assert [layer["gets"] for layer in layers] == [1, 0]
    past = cache.get(0)[1]
    assert layers[0]["dequantised_bytes"] == past.nbytes
    packed = quantized(torch.bfloat16, v_format="int4").stats()["layers"][0]
    assert packed["dequantised_bytes"] == past.nbytes
    assert plain(torch.bfloat16).stats()["layers"][0]["dequantised_bytes"] == 0


def test_times_are_recorded_when_timed():
    cache = quantized(timed=True)
    committed(cache, frames=2)
    cache.get(0)
    times = cache.stats()["ms"]
    assert {name: len(calls) for name, calls in times.items()} == {"update": 4, "get": 1}
    assert all(call > 0 for calls in times.values() for call in calls)
    assert quantized().stats()["ms"] is None


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_stored_with_every_scale_that_it_has(name):
    chosen = FORMATS[name]
    scales = [scale for scale, granularity in SCALES.items() if granularity in chosen.granularities]
    for scale in [*scales, *([torch.tensor([0.02, 0.05])] if "token_head" in scales else [])]:
        cache = quantized(k_format=name, v_format=name, k_scale=scale, v_scale=scale)
        exact = committed(cache, frames=1)[0]
        codes, side = cache.rings[0].v.codes, cache.stats()["layers"][0]["v"]
        assert codes.dtype == chosen.dtype and codes.nbytes == cache.rings[0].window * exact[:, :, 0].numel() * (
            chosen.bits / 8
        )
        assert (side["scale"] is None) == (scale == "none" if isinstance(scale, str) else False)
        if isinstance(scale, str):
            stored = cache.get(0)[1][:, :, :FRAME_TOKENS]
            assert (stored - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("name", [name for name, chosen in FORMATS.items() if "block" in chosen.granularities])
def test_scales_of_blocks_are_reported(name):
    cache = quantized(v_format=name, v_scale="block")
    values = torch.stack(committed(cache, frames=2))
    scales = amax_scale(values, name, "block").float()
    report = cache.stats()["layers"][0]["v"]["scale"]
    assert (report["min"], report["max"]) == (scales.min(), scales.max())
    assert report["mean"] == pytest.approx(scales.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["int4", "mxfp4"])
def test_codes_of_4_bits_at_the_limit_are_counted(name):
    cache = quantized(v_format=name, v_scale="block")
    v = torch.zeros(FRAME)
    v[..., 3] = FORMATS[name].largest
    v[..., 40] = -FORMATS[name].largest
    cache.update(v, v, 0)
    assert cache.stats()["layers"][0]["v"]["at_limit"] == 2 * v[..., 0].numel()
