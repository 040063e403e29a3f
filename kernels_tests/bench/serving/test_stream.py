"""Times of requests from progress events: parsed, counted, and held against llama-benchy's own figures."""

import json
import random
from pathlib import Path

import pytest

from bench.serving.load import request_times, stream
from bench.serving.load.request_times import Percentiles, RequestTimes
from bench.suite import GridPoint

RECORDED = Path(__file__).parent / "recorded"
POINT = GridPoint(depth=0, prompt=256, output=3, concurrency=1)


def event(kind, ts, request_id=0, **fields):
    return json.dumps({"schema": "llama-benchy-progress.v1", "type": kind, "ts": ts, "request_id": request_id} | fields)


def start(ts, request_id=0, run=1, concurrency=1):
    sizes = {"context_size": 0, "prompt_size": 256, "response_size": 3, "concurrency": concurrency, "run_index": run}
    return event("request_start", ts, request_id, model="m", base_url="http://s/v1", target_label="", **sizes)


def end(ts, request_id=0, tokens=3, decode_seconds=0.4, error="", prompt_tokens=256):
    figures = {"total_tokens": tokens, "prompt_tokens": prompt_tokens, "decode_seconds": decode_seconds, "error": error}
    return event("request_end", ts, request_id, **figures)


def response(sent, request_id=0, run=1, concurrency=1):
    """The events of a request: sent, its tokens 1.0, 1.1 and 1.3 s later, its end 1.4 s later."""
    return [
        start(sent - 0.25, request_id, run, concurrency),
        event("request_first_response", sent + 0.9, request_id, ttfr_s=0.9),
        event("request_first_token", sent + 1, request_id, ttft_s=1.0),
        event("tokens", sent + 1, request_id, count=1, snippet="a"),
        event("tokens", sent + 1.1, request_id, count=1, snippet="b"),
        event("tokens", sent + 1.3, request_id, count=1, snippet="c"),
        end(sent + 1.4, request_id),
    ]


COMPLETE = RequestTimes(run=1, start_ms=0, ttft_ms=1000, e2e_ms=1400, itl_ms=[100, 200], tokens=3)


def test_a_request_is_timed_from_its_sending():
    assert stream.parse(response(5000)) == {POINT: [COMPLETE]}


def test_events_out_of_order():
    lines = [*response(5000), *response(5002, 1, run=2)]
    random.Random(1).shuffle(lines)
    assert stream.parse(lines) == {POINT: [COMPLETE, COMPLETE.model_copy(update={"run": 2})]}


def test_starts_count_from_the_first_of_the_repeat():
    lines = [*response(7000, 0, concurrency=2), *response(7000.125, 1, concurrency=2)]
    lines += [*response(7010.5, 2, 2, concurrency=2), *response(7010, 3, 2, concurrency=2)]
    (requests,) = stream.parse(lines).values()
    assert [(request.run, request.start_ms) for request in requests] == [(1, 0), (1, 125), (2, 500), (2, 0)]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Warming up...",
        "[1]",
        "{}",
        event("header", 1.0),
        event("of_the_future", 1.0, count=3),
        event("tokens", 1.0)[:-9],
        event("tokens", 1.0, count=-1),
        event("tokens", 1.0, count="many"),
        event("request_first_token", 1.0, ttft_s=float("nan")),
        event("tokens", 1.0, request_id=None, count=1),
        event("tokens", 1.0, request_id=7, count=1),
    ],
)
def test_other_lines_and_requests_without_a_start_are_skipped(line):
    lines = response(5000)
    assert stream.parse([line, *lines[:4], line, *lines[4:], line]) == {POINT: [COMPLETE]}


def test_without_a_start_nothing_is_known_of_a_request():
    assert stream.parse(response(5000)[1:]) == {}


def test_a_missing_chunk_leaves_no_gaps_rather_than_a_wrong_gap():
    lines = response(5000)
    assert stream.parse([*lines[:4], *lines[5:]]) == {POINT: [COMPLETE.model_copy(update={"itl_ms": []})]}


def test_bundled_and_estimated_chunks():
    lines = response(5000)
    bundle = event("tokens", 5001.1, count=2, snippet="bc")
    (request,) = stream.parse([*lines[:4], bundle, end(5001.4)])[POINT]
    assert request.itl_ms == [100] and request.tokens == 3
    estimated = event("tokens", 5001.1, count=1, snippet="bc", estimated=True)
    (request,) = stream.parse([*lines[:4], estimated, end(5001.4)])[POINT]
    assert request.itl_ms == [100] and request.tokens == 3


def test_responses_that_llama_benchy_calls_complete():
    lines = response(5000)

    def error(**fields):
        (request,) = stream.parse([*lines[:6], end(5001.4, **fields)])[POINT]
        return request.error

    assert error(tokens=2) is None, "a token without text, in a response with its last chunk"
    assert error(tokens=3, prompt_tokens=0) is None, "a server that does not count"
    assert error(tokens=2, prompt_tokens=0) == stream.CUT
    assert error(tokens=0, decode_seconds=0) == stream.NO_END, "llama-benchy's time limit has no text"


def test_failed_requests_keep_their_times_so_far():
    lines = response(5000)
    (request,) = stream.parse([*lines[:5], end(5001.5, tokens=0, decode_seconds=0, error="reset")])[POINT]
    assert (request.error, request.ttft_ms, request.e2e_ms, request.tokens) == ("reset", 1000, 1500, 2)
    (request,) = stream.parse(lines[:6])[POINT]
    assert (request.error, request.e2e_ms, request.itl_ms) == (stream.NO_END, 1300, [100, 200])
    (request,) = stream.parse([start(5000), end(5000.25, tokens=0, decode_seconds=0)])[POINT]
    assert (request.error, request.ttft_ms, request.e2e_ms, request.tokens) == (stream.NO_TOKENS, None, 250, 0)
    (request,) = stream.parse([start(5000), end(5000.25, tokens=0, error="x" * 5000)])[POINT]
    assert request.error == "x" * stream.ERROR_CHARACTERS


def test_percentiles_of_a_stream_with_known_times():
    """100 requests, one a repeat: of repeat n, the first token after n ms, then 9 gaps of n/10 ms."""
    lines = []
    for run in range(1, 101):
        sent, seconds = 1000.0 + 10 * run, run / 1000
        stamps = [sent + seconds + number * seconds / 10 for number in range(10)]
        lines += [start(sent, run, run), event("request_first_token", stamps[0], run, ttft_s=seconds)]
        lines += [event("tokens", ts, run, count=1, snippet="a") for ts in stamps]
        lines += [end(stamps[-1], run, tokens=10, decode_seconds=0.9 * seconds)]
    latencies = request_times.latencies([stream.parse(lines)[POINT]])
    assert latencies.ttft == Percentiles(50, 95, 99, samples=100)
    assert latencies.e2e == pytest.approx((95, 180.5, 188.1, 100))
    assert latencies.itl == pytest.approx((5, 9.5, 9.9, 900))
    assert latencies.tpot == pytest.approx((5, 9.5, 9.9, 100))


def test_a_recorded_run_has_the_figures_of_llama_benchy():
    """Two repeats of one request and of two at once, by llama-benchy 0.4.0 against vLLM on a CPU."""
    with (RECORDED / "llama-benchy.jsonl").open(encoding="utf-8") as lines:
        points = stream.parse(lines)
    benchmarks = json.loads((RECORDED / "llama-benchy.json").read_text(encoding="utf-8"))["benchmarks"]
    assert [point.concurrency for point in points] == [1, 2]
    for (point, requests), expected in zip(points.items(), benchmarks, strict=True):
        sizes = [expected[name] for name in ("context_size", "prompt_size", "response_size", "concurrency")]
        assert point == GridPoint(*sizes)
        assert [request.run for request in requests] == sorted([1, 2] * point.concurrency)
        assert all(request.tokens == point.output and request.error is None for request in requests)
        ttft = [request.ttft_ms for request in requests]
        assert ttft == pytest.approx(expected["e2e_ttft"]["values"], abs=0.006)
        for run, throughput in enumerate(expected["tg_throughput"]["values"], start=1):
            repeat = [request for request in requests if request.run == run]
            first = [request.start_ms + request.ttft_ms for request in repeat]
            last = [time + sum(request.itl_ms) for time, request in zip(first, repeat, strict=True)]
            rounding = 0.05 * point.output  # of the gaps
            ends = [request.start_ms + request.e2e_ms + rounding for request in repeat]
            assert all(time <= end for time, end in zip(last, ends, strict=True))
            # llama-benchy's throughput: the tokens after each first one, from the first token to the last of all.
            seconds = (max(last) - min(first)) / 1000
            assert sum(request.tokens - 1 for request in repeat) / seconds == pytest.approx(throughput, rel=0.01)
