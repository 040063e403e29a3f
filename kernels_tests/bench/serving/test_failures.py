"""Reasons of failed requests: one for each kind of error, few of them, short, without secrets."""

import pytest

from bench.serving.load import failures
from kernels_tests.bench.samples import a_request

HEADERS = {"Authorization": "Bearer hunter2hunter2"}


def requests(*errors):
    return [a_request(error=error) for error in errors]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("HTTP 429: {'error': ...}", "HTTP 429"),
        ("Response payload is not completed: <TransferEncodingError: 400>", "connection dropped"),
        ("Server disconnected", "connection dropped"),
        ("[Errno 104] Connection reset by peer", "connection dropped"),
        ("Cannot connect to host 127.0.0.1:1 ssl:default [Connect call failed]", "connection refused"),
        ("'str' object has no attribute 'get'", "no valid response"),
        ("some  other\nerror " + "x" * 200, ("some other error " + "x" * 200)[: failures.REASON_CHARACTERS]),
    ],
)
def test_reasons(error, reason):
    assert failures.reason(error) == reason == failures.reason(reason)


def test_failures_are_counted_by_reason():
    counted = failures.counted(requests("HTTP 429: a", None, "HTTP 500", "HTTP 429: b"), 2, "HTTP 503")
    assert [(failure.reason, failure.requests) for failure in counted] == [
        ("HTTP 429", 2),
        ("not sent: HTTP 503", 2),
        ("HTTP 500", 1),
    ]
    assert failures.counted(requests(None)) == []
    assert failures.total([counted, counted])[0].requests == 4


def test_rare_reasons_are_counted_together():
    counted = failures.counted(requests(*(f"error {number}" for number in range(100))))
    assert len(counted) == failures.MAX_REASONS + 1
    assert (counted[-1].reason, counted[-1].requests) == (failures.OTHER_REASONS, 100 - failures.MAX_REASONS)
    assert failures.total([counted] * 2)[0].reason == failures.OTHER_REASONS


def test_an_error_is_stored_in_full_once_and_without_secrets(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "Zm9yIHRlc3Rz")
    errors = ["HTTP 401: hunter2hunter2 Zm9yIHRlc3Rz", "HTTP 401: hunter2hunter2 again", None]
    redacted = failures.redacted(requests(*errors), HEADERS)
    assert [request.error for request in redacted] == ["HTTP 401: *** ***", "HTTP 401", None]
