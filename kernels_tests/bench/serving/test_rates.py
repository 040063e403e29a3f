"""Failed requests in a run: counted in a line, everything else measured, and measured again by --resume alone."""

import pytest

from bench.serving import failures, rates
from bench.serving.request_times import RequestTimes
from bench.serving.result import Attempt
from bench.serving.stream import NO_TOKENS
from bench.suite import GridPoint
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import rows
from kernels_tests.bench.samples import a_rate

FAILED = GridPoint(depth=0, prompt=128, output=32, concurrency=4)


def request(error, run=1):
    return RequestTimes(run=run, start_ms=0, ttft_ms=5, e2e_ms=20, itl_ms=[], tokens=2, error=error)


def attempt(point=FAILED, errors=("HTTP 429: slow", None, "HTTP 429", "Server disconnected")):
    requests = [request(error) for error in errors]
    return Attempt(**point._asdict(), requests=requests, failures=failures.counted(requests))


@pytest.fixture
def measured(servers, monkeypatch):
    """The points that are measured, by profile in the order of execution."""
    points, measure = [], servers.measure

    def recording(endpoint, point, *arguments):
        points.append(point)
        return measure(endpoint, point, *arguments)

    monkeypatch.setattr("bench.serving.benchy.measure", recording)
    return points


@pytest.mark.parametrize("caches", [True, False])
def test_failed_requests_are_counted_and_the_other_points_measured(bench, servers, measured, tmp_path, caches):
    servers.caches, servers.attempts[FAILED] = caches, attempt()
    grid = ("--concurrency", "1,4", "--depth", "0,64", "--runs", "3")
    stopped = bench("serving", "baseline", "fp8", *grid, exit_code=1)
    assert "--resume" in stopped.stderr
    assert len(measured) == 8, "no point twice"
    for row in rows(tmp_path / "run").values():
        assert [(rate.depth, rate.concurrency) for rate in row.rates] == [(0, 1), (64, 1), (64, 4)]
        assert [each.grid_point for each in row.unrated] == [FAILED]
        (failure,) = row.failures
        assert failure.step == "rates at depth 0"
        assert failure.message == "3 of 15 requests failed: HTTP 429 (2), connection dropped (1)"
        assert row.accuracy is not None
        folder = tmp_path / "run" / row.profile
        assert rates.partial_path(folder, 0).exists() and not rates.path(folder, 0).exists()

    servers.attempts.clear()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert measured[8:] == [FAILED] * 2, "only the failed point of each profile"
    for row in rows(tmp_path / "run").values():
        assert [rate.grid_point for rate in row.rates if rate.depth == 0][1] == FAILED
        assert row.unrated == [] and row.failures == []
        assert not rates.partial_path(tmp_path / "run" / row.profile, 0).exists()


def test_a_rate_with_failed_requests_is_kept_and_measured_again(bench, servers, measured, tmp_path):
    point = GridPoint(0, 128, 32, 1)
    failed = failures.counted([request("HTTP 429")])
    servers.attempts[point] = a_rate(output=32).model_copy(update={"failures": failed, "requests": [request(None)] * 2})
    bench("serving", "baseline", "--quick", exit_code=1)
    (row,) = rows(tmp_path / "run").values()
    assert [rate.failures for rate in row.rates] == [failed] and row.unrated == []
    servers.attempts.clear()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert measured == [point] * 2


def test_a_dead_server_ends_the_run(bench, servers, measured, monkeypatch, tmp_path):
    def refused(*_, **__):
        raise Problem("requests", "no answer", "see the log")

    monkeypatch.setattr("bench.serving.rates.client.post", refused)
    first = GridPoint(0, 128, 32, 1)
    servers.attempts[first] = attempt(first, [NO_TOKENS] * 3)
    bench("serving", "baseline", "fp8", exit_code=1)
    assert measured == [first]
    counted, dead = rows(tmp_path / "run")["baseline"].failures
    assert counted.step == dead.step == "rates at depth 0" and "no answer" in dead.message


def test_a_live_server_that_fails_a_point_is_measured_at_the_others(bench, servers, measured, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.serving.rates.client.post", lambda *_, **__: {})
    first = GridPoint(0, 128, 32, 1)
    servers.attempts[first] = attempt(first, ["HTTP 400: too long"] * 3)
    bench("serving", "baseline", exit_code=1)
    assert len(measured) == 4 and len(rows(tmp_path / "run")["baseline"].rates) == 3
