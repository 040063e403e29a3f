"""Percentiles and rates of requests, counted by hand."""

import pytest

from bench.serving.load import request_times
from bench.serving.load.failures import counted
from bench.serving.load.request_times import Percentiles
from kernels_tests.bench.samples import a_rate, a_request


def test_percentiles_are_samples_by_nearest_rank():
    assert request_times.percentiles([]) is None
    assert request_times.percentiles([3.0]) == Percentiles(3.0, 3.0, 3.0, samples=1)
    assert request_times.percentiles([3.0, 1.0, 2.0]) == Percentiles(2.0, 3.0, 3.0, samples=3)
    assert request_times.percentiles([1.0, 2.0]) == Percentiles(1.0, 2.0, 2.0, samples=2)
    assert request_times.percentiles(range(1, 20)) == Percentiles(10, 19, 19, samples=19)
    assert request_times.percentiles(range(1, 21)) == Percentiles(10, 19, 20, samples=20)
    assert request_times.percentiles(range(100, 0, -1)) == Percentiles(50, 95, 99, samples=100)


def test_latencies_are_over_the_requests_of_all_repeats():
    repeats = [[a_request()], [a_request(ttft_ms=200, e2e_ms=200, itl_ms=[], tokens=1)]]
    latencies = request_times.latencies(repeats)
    assert latencies.ttft == Percentiles(100, 200, 200, samples=2)
    assert latencies.tpot == Percentiles(100, 100, 100, samples=1), "a single token has no time per output token"
    assert latencies.itl == Percentiles(100, 100, 100, samples=4)
    assert latencies.e2e == Percentiles(200, 500, 500, samples=2)
    assert request_times.latencies([]) == (None, None, None, None)


def test_rates_are_over_the_wall_time_of_each_repeat():
    repeats = [[a_request(), a_request(start_ms=500)], [a_request(), a_request(start_ms=100, e2e_ms=1900)]]
    assert request_times.request_rates(repeats) == [2.0, 1.0]
    assert request_times.token_rates(repeats) == [10.0, 5.0]
    assert request_times.request_rates([]) == []


def test_a_repeat_of_no_time_has_a_rate_all_the_same():
    assert request_times.request_rates([[a_request(e2e_ms=0)]]) == [pytest.approx(1e5)]


def test_whole_repeats_are_those_in_which_no_request_failed():
    succeeded = [a_request(run=run) for run in (1, 1, 2, 3)]
    requests = [*succeeded, a_request(run=2, error="HTTP 429"), a_request(run=4), a_request(run=4)]
    attempt = a_rate(concurrency=2).model_copy(update={"requests": requests, "failures": counted(requests, unsent=3)})
    assert [len(repeat) for repeat in attempt.repeats] == [2, 2, 1, 2, 0]
    assert [repeat[0].run for repeat in attempt.whole_repeats] == [1, 4]
