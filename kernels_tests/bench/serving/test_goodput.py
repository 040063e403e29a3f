"""Goodput: requests counted by hand against the limits of --slo."""

import pytest

from bench.serving import goodput
from bench.serving.goodput import Goodput
from bench.serving.request_times import RequestTimes


def request(ttft_ms=100, e2e_ms=500, tokens=5, run=1, start_ms=0, error=None):
    """By default 100 ms per output token after the first."""
    return RequestTimes(
        run=run, start_ms=start_ms, ttft_ms=ttft_ms, e2e_ms=e2e_ms, itl_ms=[], tokens=tokens, error=error
    )


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft=500ms", {"ttft": 500}),
        ("ttft=0.5s,itl=50ms,e2e=12.5s", {"ttft": 500, "itl": 50, "e2e": 12500}),
        (" itl=1ms , ttft=2s ", {"itl": 1, "ttft": 2000}),
    ],
)
def test_limits_are_read_in_ms(text, slo):
    assert goodput.parse(text) == slo
    assert goodput.parse(goodput.as_text(slo)) == slo


FORMS = ("", "ttft", "ttft=", "ttft=500", "ttft=500us", "ttft=5 ms", "ttft:5ms", "tpot=5ms", "TTFT=5ms", "ttft=5ms,")
LIMITS = ("ttft=-5ms", "ttft=0ms", "ttft=nanms", "ttft=1e3ms", f"ttft={'9' * 400}ms", "ttft=5ms,ttft=6ms")


@pytest.mark.parametrize("text", [*FORMS, *LIMITS])
def test_invalid_limits_are_refused_with_the_word(text):
    with pytest.raises(ValueError, match="expected") as refused:
        goodput.parse(text)
    assert repr(text.split(",")[-1].strip()) in str(refused.value)


@pytest.mark.parametrize(
    ("slo", "passes"),
    [
        ({"ttft": 100}, True),
        ({"ttft": 99.99}, False),
        ({"itl": 100}, True),
        ({"itl": 99}, False),
        ({"e2e": 500}, True),
        ({"e2e": 499}, False),
        ({"ttft": 100, "itl": 100, "e2e": 500}, True),
        ({"ttft": 100, "itl": 99, "e2e": 500}, False),
    ],
)
def test_a_request_meets_every_limit_or_is_not_counted(slo, passes):
    assert goodput.meets(request(), slo) is passes


def test_a_response_of_a_single_token_has_no_time_between_tokens():
    assert goodput.meets(request(tokens=1), {"itl": 1})


def test_a_failed_request_meets_no_limit():
    failed = [request(error="HTTP 429"), request(ttft_ms=None, tokens=0, error="no tokens")]
    assert not any(goodput.meets(each, {"ttft": 1000}) for each in failed)


def test_goodput_counts_each_repeat_over_its_wall_time():
    """First repeat: two of four within 2 s; second: one of two within 1 s."""
    first = [
        request(ttft_ms=400, e2e_ms=800),
        request(ttft_ms=500, e2e_ms=900),
        request(ttft_ms=501, e2e_ms=2000),
        request(ttft_ms=100, e2e_ms=300, error="HTTP 500"),
    ]
    second = [request(run=2, ttft_ms=300, e2e_ms=700, start_ms=300), request(run=2, ttft_ms=600, e2e_ms=900)]
    assert goodput.goodput([*first, *second], 6, {"ttft": 500}) == Goodput(share=0.5, per_s=[1.0, 1.0])
    assert goodput.goodput(first, 4, {"ttft": 10}) == Goodput(share=0, per_s=[0])


def test_without_requests_or_limits_there_is_no_goodput():
    assert goodput.goodput([], 0, {"ttft": 500}) is None
    assert goodput.goodput([request()], 1, {}) is None


def test_a_request_that_was_never_sent_meets_no_limit():
    assert goodput.goodput([request(), request()], 8, {"ttft": 100}).share == 0.25
