"""Percentiles and rates of requests, counted by hand."""

from bench.serving import request_times
from bench.serving.request_times import Percentiles, RequestTimes


def request(run=1, start_ms=0, ttft_ms=100, e2e_ms=500, tokens=5, error=None):
    gaps = [9000 if error else 100] * (tokens - 1)
    return RequestTimes(
        run=run, start_ms=start_ms, ttft_ms=ttft_ms, e2e_ms=e2e_ms, itl_ms=gaps, tokens=tokens, error=error
    )


def test_percentiles_are_samples_by_nearest_rank():
    assert request_times.percentiles([]) is None
    assert request_times.percentiles([3.0]) == Percentiles(3.0, 3.0, 3.0, samples=1)
    assert request_times.percentiles([3.0, 1.0, 2.0]) == Percentiles(2.0, 3.0, 3.0, samples=3)
    assert request_times.percentiles([1.0, 2.0]) == Percentiles(1.0, 2.0, 2.0, samples=2)
    assert request_times.percentiles(range(1, 20)) == Percentiles(10, 19, 19, samples=19)
    assert request_times.percentiles(range(1, 21)) == Percentiles(10, 19, 20, samples=20)
    assert request_times.percentiles(range(100, 0, -1)) == Percentiles(50, 95, 99, samples=100)


def test_latencies_are_those_of_requests_that_succeeded():
    requests = [request(), request(ttft_ms=200, e2e_ms=200, tokens=1), request(e2e_ms=9000, error="HTTP 429")]
    latencies = request_times.latencies(requests)
    assert latencies.ttft == Percentiles(100, 200, 200, samples=2)
    assert latencies.tpot == Percentiles(100, 100, 100, samples=1), "a single token has no time per output token"
    assert latencies.itl == Percentiles(100, 100, 100, samples=4)
    assert latencies.e2e == Percentiles(200, 500, 500, samples=2)
    assert request_times.latencies(requests[2:]) == (None, None, None, None)


def test_rates_are_over_the_wall_time_of_each_repeat():
    first = [request(), request(start_ms=500)]
    second = [request(2), request(2, start_ms=100, e2e_ms=1900, error="reset")]
    assert request_times.request_rates(second + first) == [2.0, 0.5], "a failed request takes time, and is not counted"
    assert request_times.token_rates(first + second) == [10.0, 2.5]
    assert request_times.request_rates([]) == []
