"""Reading llama-benchy: what is missing, null or miscounted fails the run."""

import json
import math
import urllib.request

import pytest

from bench.accuracy.texts import book
from bench.serving import benchy, stream
from bench.serving.result import Rate
from bench.serving.stream import RequestTimes
from bench.suite import Grid
from flashinfer_patches.errors import Problem
from kernels_tests.processes import scaled

GRID = Grid(prompt=[256], output=[64], depth=[0], concurrency=[1, 2], runs=3)


def entry(concurrency, **changes):
    def metric(count):
        return {"mean": 1.0, "std": 0.0, "values": [1.0] * count}

    return {
        "concurrency": concurrency,
        "context_size": 0,
        "prompt_size": 256,
        "response_size": 64,
        "pp_throughput": metric(3),
        "tg_throughput": metric(3),
        "e2e_ttft": metric(3 * concurrency),
    } | changes


def read(tmp_path, benchmarks, log="", returncode=0):
    saved = tmp_path / "out.json"
    if benchmarks is not None:
        saved.write_text(json.dumps({"benchmarks": benchmarks}))
    return benchy.read(saved, log, returncode, GRID, depth=0)


def test_a_complete_report(tmp_path):
    first, second = read(tmp_path, [entry(1), entry(2)])
    assert (first.concurrency, second.concurrency) == (1, 2)
    assert len(first.decode_tok_s) == 3 and len(second.first_token_ms) == 6


@pytest.mark.parametrize(
    ("benchmarks", "log", "returncode", "message"),
    [
        ([entry(1), entry(2)], "Falling back to 'gpt2' tokenizer as approximation.", 0, "gpt2"),
        (None, "HTTP 500: boom", 1, "HTTP 500"),
        (None, "Date: today\nWarmup failed: Cannot connect", 1, "Warmup failed: Cannot connect"),
        (None, "", 0, "no reason"),
        ([entry(1)], "", 0, "1 of 2"),
        ([entry(1), entry(2, tg_throughput=None)], "", 0, "tg_throughput has 0 of 3"),
        ([entry(1), entry(2, e2e_ttft={"values": [1.0] * 5})], "", 0, "e2e_ttft has 5 of 6"),
        ([entry(1), entry(2, pp_throughput={"values": [1.0] * 2})], "", 0, "pp_throughput has 2 of 3"),
        ([entry(1), entry(2, tg_throughput={"values": [1.0, 0.0, 1.0]})], "", 0, "no rates: decode_tok_s"),
        ([entry(1), entry(2, tg_throughput={"values": [1.0, math.nan, 1.0]})], "", 0, "no rates: decode_tok_s"),
        ([entry(1), entry(2, pp_throughput={"values": [1.0, None, 1.0]})], "", 0, "no rates: prefill_tok_s"),
    ],
)
def test_an_incomplete_report_fails(tmp_path, benchmarks, log, returncode, message):
    with pytest.raises(Problem) as caught:
        read(tmp_path, benchmarks, log, returncode)
    assert caught.value.exit_code == 1 and message in caught.value.message


def test_the_book_is_served_on_loopback_and_long_enough():
    with benchy.book_server() as url:
        assert url.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(url, timeout=scaled(10)).read()
    assert text == book()
    assert len(text) > 500_000


def test_the_load_average_is_that_at_the_end_of_each_point(tmp_path):
    rates = read(tmp_path, [entry(1), entry(2)])
    loads = [0.1, 0.2, 0.3, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    assert [rate.load_average for rate in benchy.with_loads(rates, loads, GRID.runs)] == [0.3, 1.6]
    assert [rate.load_average for rate in benchy.with_loads(rates, loads[1:], GRID.runs)] == [None, None]


def requests(count, **changes):
    fields = {"run": 1, "start_ms": 0, "ttft_ms": 10, "e2e_ms": 20, "itl_ms": [10], "tokens": 2} | changes
    return [RequestTimes(**fields)] * count


def test_each_rate_has_the_times_of_its_requests(tmp_path):
    rates = read(tmp_path, [entry(1), entry(2)])
    times = {rate.grid_point: requests(3 * rate.concurrency, start_ms=rate.concurrency) for rate in rates}
    rates = benchy.with_requests(rates, times, GRID.runs)
    assert [[request.start_ms for request in rate.requests] for rate in rates] == [[1] * 3, [2] * 6]


@pytest.mark.parametrize(
    ("of_second", "message"),
    [
        (None, "0 of 6 requests"),
        (requests(5), "5 of 6 requests"),
        (requests(7), "7 of 6 requests"),
        ([*requests(5), *requests(1, error="HTTP 429")], "5 of 6 requests: HTTP 429"),
        ([*requests(5), *requests(1, error=stream.NO_END)], "5 of 6 requests: no end"),
    ],
)
def test_a_missing_or_failed_request_fails(tmp_path, of_second, message):
    rates = read(tmp_path, [entry(1), entry(2)])
    times = {rates[0].grid_point: requests(3)} | ({rates[1].grid_point: of_second} if of_second else {})
    with pytest.raises(Problem) as caught:
        benchy.with_requests(rates, times, GRID.runs)
    assert caught.value.kind == "requests" and message in caught.value.message


def test_rates_without_requests_are_read(tmp_path):
    (rate,) = read(tmp_path, [entry(1), entry(2)])[:1]
    assert "requests" in rate.model_dump()
    assert Rate(**rate.model_dump(exclude={"requests"})).requests == []
