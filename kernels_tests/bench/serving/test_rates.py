"""Failed requests in a run: counted in a line, everything else measured, and measured again by --resume alone."""

import pytest

from bench.servers.client import Unanswered
from bench.serving import rates
from bench.serving.load import failures
from bench.serving.load.rate import Attempt
from bench.serving.load.stream import NO_TOKENS
from bench.suite import GridPoint
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import rows
from kernels_tests.bench.samples import a_rate, a_request, timed

FAILED = GridPoint(depth=0, prompt=128, output=16, concurrency=4)


def attempt(point=FAILED, errors=("HTTP 429: slow", None, "HTTP 429", "Server disconnected")):
    requests = [a_request(error=error) for error in errors]
    return Attempt(**point._asdict(), requests=requests, failures=failures.counted(requests))


@pytest.fixture
def measured(servers, monkeypatch):
    """The points that are measured, by profile in the order of execution."""
    points, measure = [], servers.measure

    def recording(endpoint, point, *arguments):
        points.append(point)
        return measure(endpoint, point, *arguments)

    monkeypatch.setattr("bench.serving.load.benchy.measure", recording)
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
    point = GridPoint(0, 128, 16, 1)
    servers.attempts[point] = rate_at(point, [500.0, 510.0], failed=1)
    failed = servers.attempts[point].failures
    bench("serving", "baseline", "--quick", exit_code=1)
    (row,) = rows(tmp_path / "run").values()
    assert [rate.failures for rate in row.rates] == [failed] and row.unrated == []
    servers.attempts.clear()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert measured == [point] * 2


def test_a_worse_attempt_does_not_replace_a_better_attempt(bench, servers, measured, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.serving.rates.client.post", lambda *_, **__: {})
    point = GridPoint(0, 128, 16, 1)
    earlier = servers.attempts[point] = rate_at(point, [500.0, 510.0, 520.0], failed=1)
    bench("serving", "baseline", "--quick", exit_code=1)
    servers.attempts[point] = unsent(point)
    bench("serving", "--resume", str(tmp_path / "run"), exit_code=1)
    (row,) = rows(tmp_path / "run").values()
    assert row.rates == [earlier] and row.unrated == []
    servers.attempts[point] = better = rate_at(point, [500.0] * 4, failed=1)
    bench("serving", "--resume", str(tmp_path / "run"), exit_code=1)
    assert rows(tmp_path / "run")["baseline"].rates == [better]


def rate_at(point, decode, failed=0):
    rate = a_rate(point.depth, point.concurrency, point.output, decode).model_copy(update={"prompt": point.prompt})
    return timed(rate, failed=failed)


def unsent(point):
    return Attempt(**point._asdict(), requests=[], failures=failures.counted([], unsent=15, unsent_reason="HTTP 503"))


def test_a_point_of_which_nothing_was_sent_is_measured_again(bench, servers, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.serving.rates.client.post", lambda *_, **__: {})
    point = GridPoint(0, 128, 16, 1)
    rate = rate_at(point, [500.0])
    attempts = [unsent(point), rate]
    monkeypatch.setattr("bench.serving.load.benchy.measure", lambda *_: attempts.pop(0))
    bench("serving", "baseline", "--quick")
    assert rows(tmp_path / "run")["baseline"].rates == [rate] and attempts == []
    attempts = [unsent(point), unsent(point)]
    bench("serving", "baseline", "--quick", "--run-dir", str(tmp_path / "failed"), exit_code=1)
    assert rows(tmp_path / "failed")["baseline"].unrated == [unsent(point)] and attempts == []


def fail_probe(monkeypatch, problem):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr("bench.serving.rates.client.post", fail)


def test_a_dead_server_ends_the_run(bench, servers, measured, monkeypatch, tmp_path):
    fail_probe(monkeypatch, Unanswered("requests", "no answer", "see the log"))
    first = GridPoint(0, 128, 16, 1)
    servers.attempts[first] = attempt(first, [NO_TOKENS] * 3)
    bench("serving", "baseline", "fp8", exit_code=1)
    assert measured == [first]
    (failure,) = rows(tmp_path / "run")["baseline"].failures
    assert failure.step == "rates at depth 0"
    assert "3 of 3 requests failed" in failure.message and "no answer" in failure.message


@pytest.mark.parametrize("message", ["HTTP 429: slow down", "HTTP 404: no such page", "expected a completion, got {}"])
def test_a_server_that_refuses_the_probe_is_not_dead(bench, servers, measured, monkeypatch, tmp_path, message):
    fail_probe(monkeypatch, Problem("requests", message, "see the log"))
    first = GridPoint(0, 128, 16, 1)
    servers.attempts[first] = attempt(first, [NO_TOKENS] * 3)
    bench("serving", "baseline", exit_code=1)
    assert len(measured) == 4 and len(rows(tmp_path / "run")["baseline"].rates) == 3


def test_a_live_server_that_fails_a_point_is_measured_at_the_others(bench, servers, measured, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.serving.rates.client.post", lambda *_, **__: {})
    first = GridPoint(0, 128, 16, 1)
    servers.attempts[first] = attempt(first, ["HTTP 400: too long"] * 3)
    bench("serving", "baseline", exit_code=1)
    assert len(measured) == 4 and len(rows(tmp_path / "run")["baseline"].rates) == 3
