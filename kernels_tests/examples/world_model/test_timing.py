"""Cold frames are listed and left out."""

import pytest
import torch
from world.timing import Clock, cold_frames, summarise


@pytest.mark.parametrize(
    ("totals", "graphs", "cold"),
    [
        ([90, 30, 10, 10, 10, 10, 10], [2, 0, 0, 0, 0, 0, 0], [0, 1]),
        ([10, 11, 50, 10, 10], [0] * 5, []),
        ([10, 10, 80, 10, 10], [0, 0, 1, 0, 0], [2]),
        ([10], [1], [0]),
    ],
)
def test_cold_frames_are_compiled_or_slow_at_the_start(totals, graphs, cold):
    assert cold_frames(totals, graphs) == cold


def test_statistics_leave_cold_frames_out():
    frames = [{"total_ms": total, "pipeline_ms": total / 2} for total in (100.0, 10.0, 30.0)]
    summary = summarise(frames, [0])
    assert summary["frames"] == 2
    assert summary["fps_total"] == pytest.approx(50) and summary["fps_pipeline"] == pytest.approx(100)
    assert summary["mean_ms"]["total_ms"] == pytest.approx(20)
    assert summarise(frames, [0, 1, 2]) == {"frames": 0}


def test_a_clock_adds_the_parts_of_a_frame():
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock("mlp"):
            pass
    parts = clock.end_frame()
    assert parts.keys() == {"mlp"} and parts["mlp"] > 0
    assert clock.end_frame() == {}
