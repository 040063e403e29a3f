"""The server's counters: read by name, attributed to a point by time, and not known where there are none."""

import threading

import pytest

from bench.serving import counters
from bench.serving.counters import Counters
from kernels_tests.bench.serving import streaming_stub
from kernels_tests.processes import wait_for

VLLM_0_32 = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.75
vllm:num_preemptions_total{engine="0",model_name="tiny"} 12.0
vllm:num_preemptions_created{engine="0",model_name="tiny"} 1.7e+09
"""


def test_counters_are_read_by_name():
    figures = {"running": 3, "waiting": 1, "preemptions": 12, "kv_cache_usage": 0.75}
    assert counters.parse(VLLM_0_32) == figures
    older = VLLM_0_32.replace("kv_cache_usage", "gpu_cache_usage").replace("preemptions_total", "preemptions")
    assert counters.parse(older) == figures
    assert counters.parse("vllm:num_requests_waiting 2\n") == {"waiting": 2}


def test_engines_are_summed_and_the_fullest_cache_counts():
    second = VLLM_0_32.replace('engine="0"', 'engine="1"').replace("0.75", "0.5")
    engines = counters.parse(VLLM_0_32 + second)
    assert engines == {"running": 6, "waiting": 2, "preemptions": 24, "kv_cache_usage": 0.75}


@pytest.mark.parametrize("text", ["", "no metrics", "vllm:num_requests_waiting NaN", "vllm:num_requests_waiting{} x"])
def test_text_without_counters(text):
    assert counters.parse(text) == {}


def sample(time_s, waiting, preemptions, usage=0.5):
    return time_s, {"waiting": waiting, "preemptions": preemptions, "kv_cache_usage": usage}


def test_counters_of_a_point_are_those_of_its_warm_up_and_the_preemptions_since():
    samples = [sample(1, 9, 2), sample(2, 3, 4, 1.0), sample(6, 20, 9)]
    assert counters.summary(samples, 3) == Counters(waiting=9, running=None, preemptions=5, kv_cache_usage=1.0)
    assert counters.summary(samples[2:], 3) == Counters(), "no poll in so short a warm-up"
    assert counters.summary(samples[:1], 3) == Counters(waiting=9, kv_cache_usage=0.5)
    assert counters.summary([], 2) is None


def test_nothing_is_polled_between_the_start_of_the_requests_and_their_end(monkeypatch):
    monkeypatch.setattr(counters, "INTERVAL_S", 0.01)
    with streaming_stub.serve() as server:
        server.metrics = lambda: VLLM_0_32
        with counters.polled(server.endpoint) as (samples, stop):
            wait_for(lambda: len(samples) > 2)
            stop()
            wait_for(lambda: not any(thread.name.endswith("(_poll)") for thread in threading.enumerate()))
            polls = server.polls
            assert polls == len(samples)
        assert server.polls == polls + 1 == len(samples)


@pytest.mark.parametrize("metrics", [None, lambda: "python_gc 1\n"])
def test_a_server_without_counters_is_polled_once(metrics):
    with streaming_stub.serve() as server:
        server.metrics = metrics
        with counters.polled(server.endpoint) as (samples, _):
            pass
    assert samples == [] and server.polls == (metrics is not None)
