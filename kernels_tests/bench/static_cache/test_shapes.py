"""Bytes and predictions of the bench's shapes, against the caches that they describe."""

import pytest
import torch

from bench.static_cache import measure, shapes
from bench.static_cache.shapes import BF16, INT8, POINTS, STORAGES, V_INT8, Point
from kernels_tests.bench.static_cache.samples import CEILING

SMALL = Point(8, 64)


@pytest.fixture
def small(monkeypatch):
    """Measure on a CPU, one layer."""
    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "_layers", lambda *_: 1)


@pytest.mark.parametrize("name", STORAGES)
def test_bytes_are_those_of_the_cache(small, name):
    """But for the fixed scales of heads, which are of no token."""
    cache, storage = measure.full_cache(SMALL, name), STORAGES[name]
    fixed = 4 * shapes.HEADS * (storage.k_scale, storage.v_scale).count("head")
    assert shapes.window_bytes(storage, SMALL.window) == cache.memory()["window_bytes"] - fixed
    assert cache.written(0).all() and cache.get_offset(0) == SMALL.window
    assert torch.stack(cache.get(0)).float().std() == pytest.approx(1, abs=0.1)


def test_rolled_frames_move_more_bytes_in_8_bits_than_in_bf16():
    """32, 36 and 40 bytes of a pair of elements, without scales (lowp/static_cache/NOTES.md)."""
    pairs = shapes.HEADS * shapes.HEAD_DIM * 65536
    for name, expected in ((BF16, 32), (V_INT8, 36), (INT8, 40)):
        scales = STORAGES[name]._replace(k_scale="none", v_scale="none")
        microseconds = shapes.rolled_us(Point(16, 65536), scales, CEILING)
        assert microseconds == pytest.approx(pairs * expected / CEILING * 1e6)


@pytest.mark.parametrize(("frame_tokens", "ratio"), [(16, 1.88), (64, 1.7), (256, 1.0)])
def test_arithmetic_binds_long_frames(frame_tokens, ratio):
    point = Point(frame_tokens, 65536)
    predicted = [shapes.attention_us(point, STORAGES[name], CEILING) for name in (BF16, INT8)]
    assert predicted[0] / predicted[1] == pytest.approx(ratio, rel=0.05)


def test_bf16_ring_by_flex_is_measured_first_at_every_point():
    assert all(shapes.attention_cases(point)[0] == ("flex", BF16) for point in POINTS)
