"""The server's counters: read by name, attributed to a point by time, and not known where there are none."""

import threading

import pytest

from bench.serving.load import counters
from bench.serving.load.counters import Counters
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


def sample(time_s, running, waiting, preemptions=0, usage=0.5):
    return time_s, {"running": running, "waiting": waiting, "preemptions": preemptions, "kv_cache_usage": usage}


def test_counters_of_a_point_are_those_of_its_warm_up_and_the_preemptions_since():
    samples = [sample(1, 0, 9, 2), sample(2, 4, 3, 4, 1.0), sample(6, 4, 20, 9)]
    times = {"warm_up_start": 1, "start": 3}
    summary = counters.summary(samples, **times, concurrency=7)
    assert summary == Counters(waiting=9, running=4, preemptions=5, kv_cache_usage=1.0)
    assert counters.summary(samples[2:], **times, concurrency=7) == Counters(), "no poll in so short a warm-up"
    summary = counters.summary(samples[:1], **times, concurrency=7)
    assert summary == Counters(waiting=9, running=0, kv_cache_usage=0.5)
    assert counters.summary([], **times, concurrency=7) is None


@pytest.mark.parametrize(("running", "is_known"), [(4, True), (3, False), (0, False)])
def test_counters_of_a_load_that_no_poll_saw_are_not_known(running, is_known):
    samples = [sample(1, 0, 0), sample(2, running, 0), sample(6, 0, 0)]
    summary = counters.summary(samples, warm_up_start=1, start=3, concurrency=4)
    expected = Counters(waiting=0, running=running, preemptions=0, kv_cache_usage=0.5)
    assert summary == (expected if is_known else Counters(preemptions=0))


def test_samples_before_the_warm_up_are_of_another_load():
    samples = [sample(1, 1, 8, 0, 1.0), sample(2, 1, 0), sample(6, 0, 0)]
    summary = counters.summary(samples, warm_up_start=1.5, start=3, concurrency=1)
    assert summary == Counters(waiting=0, running=1, preemptions=0, kv_cache_usage=0.5)


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
