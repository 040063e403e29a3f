"""Goodput: requests counted by hand against the limits of --slo."""

import pytest

from bench.serving import goodput
from bench.serving.goodput import Goodput
from kernels_tests.bench.samples import a_request


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
    assert goodput.meets(a_request(), slo) is passes


def test_a_response_of_a_single_token_has_no_time_between_tokens():
    assert goodput.meets(a_request(tokens=1), {"itl": 1})


def test_a_failed_request_meets_no_limit():
    failed = [a_request(error="HTTP 429"), a_request(ttft_ms=None, tokens=0, error="no tokens")]
    assert not any(goodput.meets(each, {"ttft": 1000}) for each in failed)


def test_goodput_counts_each_repeat_over_its_wall_time():
    """First repeat: two of four within 2 s; second: one of two within 1 s."""
    first = [
        a_request(ttft_ms=400, e2e_ms=800),
        a_request(ttft_ms=500, e2e_ms=900),
        a_request(ttft_ms=501, e2e_ms=2000),
        a_request(ttft_ms=100, e2e_ms=300, error="HTTP 500"),
    ]
    second = [a_request(ttft_ms=300, e2e_ms=700, start_ms=300), a_request(ttft_ms=600, e2e_ms=900)]
    assert goodput.goodput([first, second], 6, {"ttft": 500}) == Goodput(share=0.5, per_s=[1.0, 1.0])
    assert goodput.goodput([first], 4, {"ttft": 10}) == Goodput(share=0, per_s=[0])


def test_without_requests_or_limits_there_is_no_goodput():
    assert goodput.goodput([], 0, {"ttft": 500}) is None
    assert goodput.goodput([[a_request()]], 1, {}) is None


def test_requests_that_were_never_sent_meet_no_limit():
    repeat = [a_request(), a_request()]
    assert goodput.goodput([repeat, [], [], []], 8, {"ttft": 100}) == Goodput(share=0.25, per_s=[4.0, 0, 0, 0])
    assert goodput.goodput([[], []], 4, {"ttft": 100}) == Goodput(share=0, per_s=[0, 0])


def test_a_request_that_failed_at_once_has_a_goodput():
    failed = a_request(ttft_ms=None, e2e_ms=0, itl_ms=[], tokens=0, error="reset")
    assert goodput.goodput([[failed]], 1, {"ttft": 100}) == Goodput(share=0, per_s=[0])
