"""Real llama-benchy with a key: any key is an argument, and none stays in the log or in the events."""

from dataclasses import replace

import pytest

from bench.serving.load import benchy
from bench.serving.load.book_server import book_server
from bench.serving.load.rate import Rate
from bench.suite import GridPoint
from kernels_tests.bench.serving import streaming_stub

POINT = GridPoint(depth=0, prompt=16, output=4, concurrency=1)


@pytest.fixture
def measured(tmp_path):
    """A function that measures a point with a key, where the server answers by `behaviours`."""

    def measure(key, behaviours=()):
        with streaming_stub.serve() as server, book_server(POINT.prompt) as book_url:
            server.behaviours = list(behaviours)
            endpoint = replace(server.endpoint, headers={"Authorization": f"Bearer {key}"})
            return benchy.measure(endpoint, POINT, 2, tmp_path, book_url, lambda: None)

    return measure


def test_a_key_may_start_like_an_option(measured):
    assert isinstance(measured("--foo"), Rate)


def test_a_key_that_the_server_repeats_is_masked_in_log_and_events(measured, tmp_path):
    attempt = measured(streaming_stub.SECRET, ["tokens", "too_many", "tokens"])
    (error,) = [request.error for request in attempt.requests if request.error]
    assert "slow down" in error and streaming_stub.SECRET not in error
    texts = {path.suffix: path.read_text() for path in tmp_path.glob("llama-benchy-*")}
    assert "slow down" in texts[".jsonl"] and texts.keys() >= {".log", ".jsonl"}
    assert not any(streaming_stub.SECRET in text for text in texts.values())
