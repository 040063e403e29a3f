"""Real llama-benchy against a stub server: the times of its requests reach the rates, and failures are counted."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.servers.client import Endpoint
from bench.serving import benchy, stream
from bench.suite import Grid
from flashinfer_patches.errors import Problem

MODEL = Path(__file__).resolve().parents[3] / "models" / "tiny_gpt_oss"
GRID = Grid(prompt=[16], output=[4], depth=[0], concurrency=[1, 3], runs=2)
FIRST_S, NEXT_S = 0.05, 0.02  # before the first token, and before each of the others


class Handler(BaseHTTPRequestHandler):
    """Answers chat completions; streams `max_tokens` tokens, each in a chunk of its own, at known times."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        streams = request.get("stream", False)
        self.server.streamed += streams
        if streams and self.server.streamed > self.server.limit:
            self.send_error(429)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
        self.end_headers()
        if not streams:  # a warm-up
            self.wfile.write(json.dumps({"usage": {"prompt_tokens": 20}}).encode())
            return
        for token in range(request["max_tokens"]):
            time.sleep(NEXT_S if token else FIRST_S)
            self.send_event({"choices": [{"delta": {"content": "a"}, "token_ids": [token]}]})
        self.send_event({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": request["max_tokens"]}})
        self.wfile.write(b"data: [DONE]\n\n")

    def send_event(self, content):
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def stub():
    """A stub server with its endpoint; it answers 429 after `limit` streams."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.streamed, server.limit = 0, 10**6
        server.endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}", "tiny", str(MODEL), "the stub's log")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def measure(stub, folder):
    ends = []
    with benchy.book_server() as book_url:
        return benchy.measure(stub.endpoint, GRID, 0, folder, book_url, lambda: ends.append(0)), len(ends)


def test_each_measured_request_has_its_times(stub, tmp_path):
    rates, ended = measure(stub, tmp_path)
    assert [rate.concurrency for rate in rates] == [1, 3] and ended == 8
    assert stub.streamed == 12, "a warm-up repeat of each point"
    for rate in rates:
        assert [request.run for request in rate.requests] == sorted([1, 2] * rate.concurrency)
        assert [request.ttft_ms for request in rate.requests] == pytest.approx(rate.first_token_ms, abs=0.006)
        for request in rate.requests:
            assert request.error is None and request.tokens == 4 and len(request.itl_ms) == 3
            assert request.ttft_ms >= 1000 * FIRST_S
            assert request.e2e_ms >= 1000 * (FIRST_S + 3 * NEXT_S)
        assert min(request.start_ms for request in rate.requests) == 0
        ceiling = rate.concurrency / (FIRST_S + 3 * NEXT_S)
        assert all(0 < request_rate <= ceiling for request_rate in stream.request_rates(rate.requests))


def test_a_refused_request_fails_the_run_and_stays_in_the_events(stub, tmp_path):
    stub.limit = 2  # a warm-up, and a measured request
    with pytest.raises(Problem) as caught:
        measure(stub, tmp_path)
    assert caught.value.kind == "requests" and "HTTP 429" in caught.value.message
    with (tmp_path / "llama-benchy-depth-0.jsonl").open(encoding="utf-8") as lines:
        (requests,) = stream.parse(lines).values()
    assert [(request.run, bool(request.error), request.tokens) for request in requests] == [(1, False, 4), (2, True, 0)]
