"""Every case of a point on a CPU: eager, not timed, our kernel replaced by the reference; errors are real."""

import pytest
import torch

from bench.static_cache import measure, shapes
from bench.static_cache.shapes import BF16, FRAME_STORAGES, STORAGES, Point
from kernels_tests.bench.static_cache.samples import CEILING
from lowp.static_cache import attend

POINT = Point(8, 64)


@pytest.fixture
def rows(monkeypatch):
    def times(call, _layers):
        call()
        return {"samples_us": [1.0], "time_us": 1.0}

    def peak_bytes(call):
        call()
        return 1

    def attend_on_cpu(q, cache, layer, k, v, backend):
        return attend(q, cache, layer, k, v, "flex" if backend == "flex" else "reference")

    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "_layers", lambda *_: 2)
    monkeypatch.setattr(measure, "_times", times)
    monkeypatch.setattr(measure, "_peak_bytes", peak_bytes)
    monkeypatch.setattr(measure, "attend", attend_on_cpu)
    monkeypatch.setattr(measure, "FRAME_POINTS", [POINT])
    monkeypatch.setattr(shapes, "MAIN_WINDOW", POINT.window)
    monkeypatch.setattr(shapes, "FLEX_STORAGES", (BF16, "V e4m3", "V int8"))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return measure.rows(POINT, CEILING, lambda _: None)


def test_every_case_is_a_row_with_its_error(rows):
    assert len(rows) == 3 + len(STORAGES) + 3 * len(FRAME_STORAGES)
    failed = [row for row in rows if row.error]
    assert [(row.backend, row.storage) for row in failed] == [("flex", "V int8")]
    assert "no V scales per slot" in failed[0].error
    for row in rows:
        if not row.error:
            assert 0 < row.rel_l2 < (5e-3 if row.part == "attention" else 2e-2), row


def test_a_ring_and_the_rolled_cache_are_measured_with_the_same_storages(rows):
    frames = {(row.design, row.storage) for row in rows if row.part == "frame"}
    assert frames == {(design, name) for design in ("ring", "rolled") for name in FRAME_STORAGES}
    assert {row.storage for row in rows if row.peak_bytes} == set(STORAGES)
