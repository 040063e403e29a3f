"""Timing without a GPU: samples, replays, what is captured, and the time between other kernels."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from bench.kernels import timing


def test_samples_are_microseconds_a_call_without_the_warmups():
    clock = iter([100.0] * timing.THOROUGH.warmups + [0.5] * timing.THOROUGH.most)
    assert timing.samples_us(lambda: next(clock), 20, timing.THOROUGH) == [25.0] * timing.THOROUGH.most
    assert next(clock, None) is None


def test_long_replays_are_fewer():
    clock = iter([100.0] * timing.THOROUGH.warmups + [60.0] * 9 + [70.0])
    assert len(timing.samples_us(lambda: next(clock), 1, timing.THOROUGH)) == 9 and next(clock) == 70.0
    assert len(timing.samples_us(lambda: 1e6, 1, timing.THOROUGH)) == timing.THOROUGH.least
    assert len(timing.samples_us(lambda: 1e6, 1, timing.BRIEF)) == timing.BRIEF.least


def test_calls_are_repeated_in_whole_rounds():
    calls = [lambda: 1, lambda: 2, lambda: 3]
    assert timing.repeated(calls) == calls * 6
    assert timing.repeated(calls * 7) == calls * 7


def test_outputs_of_eager_calls_are_cleared_before_the_replays(monkeypatch):
    """Else a graph that writes nothing would pass with what the first, eager calls left."""
    steps = []
    stream = SimpleNamespace(wait_stream=lambda _stream: None)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda _end: 32.0)
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": nullcontext,
        "synchronize": lambda: None,
        "graph": nullcontext,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: steps.append("replay")),
        "Event": lambda **_: event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(timing, "_flush", lambda: steps.append("flush"))
    samples = timing.graph_us([lambda: steps.append("call")] * 16, lambda: steps.append("clear"))
    assert steps == ["call"] * 32 + ["clear"] + ["flush", "replay"] * (timing.THOROUGH.warmups + len(samples))
    assert set(samples) == {2000.0}


def test_between_us_is_the_pairs_less_the_additions(monkeypatch):
    """Ten calls: graphs of 50 us alone, 90 us with an addition after each, 20 us of additions."""
    sequence, graphs = [], []

    def captured(calls):
        graphs.append([call() for call in calls])
        steps = graphs[-1]
        pairs = "add" in steps and "call" in steps
        microseconds = 90.0 if pairs else 50.0 if "call" in steps else 20.0
        return lambda: [sequence.append("replay"), microseconds * 1e-3][1]

    monkeypatch.setattr(timing, "_captured", captured)
    monkeypatch.setattr(timing, "_warm_up", lambda calls: sequence.append(len(calls)))
    monkeypatch.setattr(timing, "_addition", lambda: lambda: "add")
    timing._additions_us.cache_clear()
    calls = [lambda: "call"] * 10
    alone, between = timing.back_to_back_and_between_us(calls, lambda: sequence.append("clear"))
    timing._additions_us.cache_clear()
    assert (alone, between) == (pytest.approx(5.0), pytest.approx(9.0 - 2.0))
    assert graphs == [["call"] * 10, ["call", "add"] * 10, ["add"] * 10]
    assert sequence[:3] == [1, "clear", "replay"] and sequence.count(1) == 2, "a single call before each first capture"


def test_the_fastest_setting_is_that_of_the_smallest_median():
    assert timing.fastest({"a": [1.0, 9.0, 9.0], "b": [8.0, 8.0, 20.0]}) == "b"
