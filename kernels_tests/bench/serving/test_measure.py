"""Real llama-benchy against a stub server: the times of its requests, and each failure counted by its reason."""

import threading

import pytest

from bench.serving import rates
from bench.serving.load import benchy, failures, request_times, stream
from bench.serving.load.book_server import book_server
from bench.serving.load.rate import Attempt, Rate
from bench.suite import Grid, GridPoint
from flashinfer_patches.errors import Problem
from kernels_tests.bench.serving import streaming_stub

GRID = Grid(prompt=[16], output=[4], depth=[0], concurrency=[1], runs=1)


@pytest.fixture(scope="module")
def book_url():
    with book_server(16) as url:
        yield url


@pytest.fixture
def server():
    with streaming_stub.serve() as server:
        yield server


def measure(server, book_url, folder, concurrency, runs, on_request=lambda: None):
    point = GridPoint(depth=0, prompt=16, output=4, concurrency=concurrency)
    return benchy.measure(server.endpoint, point, runs, folder, book_url, on_request)


def test_a_slow_server_fails_no_request_and_each_has_its_times(server, book_url, tmp_path):
    ends = []
    rate = measure(server, book_url, tmp_path, 3, 2, lambda: ends.append(0))
    assert len(ends) == 6 and server.streamed == 9, "a warm-up repeat"
    assert rate.failures == [] and rate.counters is None and rate.load_average is not None
    assert [request.run for request in rate.requests] == sorted([1, 2] * 3)
    assert [request.ttft_ms for request in rate.requests] == rate.first_token_ms
    for request in rate.requests:
        assert request.error is None and request.tokens == 4 and len(request.itl_ms) == 3
        assert request.ttft_ms >= 1000 * streaming_stub.FIRST_S
        assert request.e2e_ms >= 1000 * (streaming_stub.FIRST_S + 3 * streaming_stub.NEXT_S)
    assert min(request.start_ms for request in rate.requests) == 0
    ceiling = 3 / (streaming_stub.FIRST_S + 3 * streaming_stub.NEXT_S)
    assert all(0 < request_rate <= ceiling for request_rate in request_times.request_rates(rate.whole_repeats))
    assert len(rate.decode_tok_s) == len(rate.prefill_tok_s) == 2
    (events,) = tmp_path.glob("*.jsonl")
    before, _, _ = events.read_text().partition("request_start")
    assert before.count('"type":"latency_measured"') == 1, "the event just before the warm-up repeat"


FAILURES = {  # behaviour of the stub -> reason
    "dropped": "connection dropped",
    "reset": "connection dropped",
    "cut": stream.CUT,
    "too_many": "HTTP 429",
    "broken": "HTTP 500",
    "page": stream.NO_TOKENS,
    "empty": stream.NO_TOKENS,
    "no_json": stream.NO_TOKENS,
    "json_body": stream.NO_TOKENS,
    "no_object": "no valid response",
}


def test_each_failure_is_counted_and_whole_repeats_keep_their_rates(server, book_url, tmp_path):
    concurrency = len(FAILURES) + 2  # beside successful ones, one with a wrong Content-Type
    server.behaviours = ["tokens"] * 2 * concurrency + [*FAILURES, "wrong_type"]
    rate = measure(server, book_url, tmp_path, concurrency, 3)
    assert isinstance(rate, Rate)
    expected = {reason: list(FAILURES.values()).count(reason) for reason in FAILURES.values()}
    assert {failure.reason: failure.requests for failure in rate.failures} == expected
    assert len(rate.requests) == 3 * concurrency
    assert len(rate.decode_tok_s) == len(rate.prefill_tok_s) == 2, "not of the repeat with failures"
    ceiling = concurrency / streaming_stub.NEXT_S
    assert all(0 < value < ceiling for value in rate.decode_tok_s)
    assert len(rate.first_token_ms) == 2 * concurrency
    succeeded = [request.run for request in rate.requests if request.error is None]
    assert [succeeded.count(repeat) for repeat in (1, 2, 3)] == [concurrency, 2, concurrency]
    errors = [request.error for request in rate.requests if request.error]
    assert max(map(len, errors)) <= stream.ERROR_CHARACTERS
    assert any("slow down" in error for error in errors) and not any(streaming_stub.SECRET in error for error in errors)
    assert Rate.model_validate_json(rate.model_dump_json()) == rate


def test_refused_requests_leave_the_repeats_before(server, book_url, tmp_path):
    server.behaviours = ["tokens"] * 3 + ["too_many"] * 2
    rate = measure(server, book_url, tmp_path, 1, 4)
    assert [failure.model_dump() for failure in rate.failures] == [{"reason": "HTTP 429", "requests": 2}]
    assert len(rate.decode_tok_s) == 2 and len(rate.requests) == 4
    successes = [request for request in rate.requests if request.error is None]
    assert [request.run for request in successes] == [1, 2]
    assert rate.first_token_ms == [request.ttft_ms for request in successes]


def test_a_stalled_request_ends_after_the_limit(server, book_url, tmp_path, monkeypatch):
    ended = threading.Event()

    def shorten_limit():
        ended.wait()
        monkeypatch.setattr(benchy, "STALL_S", 1.0)

    monkeypatch.setattr(benchy, "CHECK_S", 0.05)
    server.on_stall, server.behaviours = shorten_limit, ["tokens", "tokens", "tokens", "stalled"]
    attempt = measure(server, book_url, tmp_path, 2, 2, ended.set)
    assert type(attempt) is Attempt, "no repeat is whole"
    counts = {failure.reason: failure.requests for failure in attempt.failures}
    assert counts == {"no token for 1 s": 1, "not sent: no token for 1 s": 2}
    first, second = sorted(attempt.requests, key=lambda request: request.error is not None)
    assert (first.error, first.tokens, second.tokens) == (None, 4, 2)
    assert second.e2e_ms > 1000


@pytest.mark.parametrize("refused", [True, False])
def test_a_dead_server_ends_the_measurement(server, book_url, tmp_path, refused):
    server.unstreamed_status = 500
    if refused:
        server.shutdown()
        server.server_close()
    grid = GRID.replaced({"concurrency": [1, 2, 4]})
    with pytest.raises(Problem) as caught:
        rates.measure_depth(server.endpoint, grid, 0, tmp_path, book_url, lambda: None)
    assert caught.value.kind == "requests"
    (attempt,) = rates.saved(tmp_path, 0)
    (failure,) = attempt.failures
    assert failure.reason.startswith(failures.NOT_SENT) and failure.requests == 1
    assert failure.reason.endswith("connection refused" if refused else "HTTP 500")


def test_counters_are_those_of_the_warm_up_and_the_preemptions_since(server, book_url, tmp_path):
    def metrics():
        return (
            f"vllm:num_requests_running 2.0\nvllm:num_requests_waiting {server.streamed}\n"
            f"vllm:num_preemptions_total {5 if server.streamed > 2 else 0}\nvllm:kv_cache_usage_perc 0.5\n"
        )

    server.metrics, server.behaviours = metrics, ["polled_tokens"] * 2
    rate = measure(server, book_url, tmp_path, 2, 1)
    assert server.streamed == 4
    assert rate.counters.model_dump() == {"waiting": 2, "running": 2, "preemptions": 5, "kv_cache_usage": 0.5}
