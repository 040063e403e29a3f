"""The server's counters: read by name, attributed to a point by time, and not known where there are none."""

import pytest

from bench.serving import counters
from bench.serving.counters import Counters
from kernels_tests.bench.serving import stub

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
    both = counters.parse(VLLM_0_32 + second)
    assert both == {"running": 6, "waiting": 2, "preemptions": 24, "kv_cache_usage": 0.75}


@pytest.mark.parametrize("text", ["", "no metrics", "vllm:num_requests_waiting NaN", "vllm:num_requests_waiting{} x"])
def test_text_without_counters(text):
    assert counters.parse(text) == {}


def sample(at, waiting, preemptions, usage=0.5):
    return at, {"waiting": waiting, "preemptions": preemptions, "kv_cache_usage": usage}


def test_counters_of_a_point_are_those_between_its_start_and_end():
    samples = [sample(1, 9, 2, 1.0), sample(2, 9, 4, 1.0), sample(3, 0, 5), sample(4, 3, 7, 0.75), sample(6, 8, 9)]
    expected = Counters(waiting=3, running=None, preemptions=5, kv_cache_usage=0.75)
    assert counters.summary(samples, 2.5, 5) == expected
    assert counters.summary(samples, 4.5, 5) == Counters(preemptions=2), "no poll in so short a point"
    assert counters.summary(samples[:1], 0, 2) == Counters(waiting=9, kv_cache_usage=1.0)
    assert counters.summary([], 0, 2) is None


@pytest.mark.parametrize("metrics", [None, lambda: "python_gc 1\n"])
def test_a_server_without_counters_is_asked_once(metrics):
    with stub.serve() as server:
        server.metrics = metrics
        with counters.polled(server.endpoint) as samples:
            while not (server.polls or metrics is None):
                pass
    assert samples == [] and server.polls == (metrics is not None)
