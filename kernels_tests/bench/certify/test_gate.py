"""The gate of a certificate: what can keep it from running, its verdict, and how its servers end."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from bench.accuracy import answers
from bench.certify import gate
from bench.certify.budget import OutOfTime, watch
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_record
from kernels_tests.vllm_launch.machines import RTX
from vllm_launch import model, plan, preflight, server, software


class Servers:
    """Pretended servers of two profiles: `fail[profile]` is raised at the start, `slow` ones never get ready."""

    def __init__(self):
        self.fail, self.slow, self.alive = {}, set(), set()

    @contextmanager
    def running(self, plan, folder, status):
        with self.process(plan):
            try:
                if plan.profile in self.fail:
                    raise self.fail[plan.profile]
                while plan.profile in self.slow:
                    status("starting")
                    time.sleep(0.01)
                yield SimpleNamespace(plan=plan)
            finally:
                status("ending the server")

    @contextmanager
    def process(self, plan):
        self.alive.add(plan.profile)
        try:
            yield
        finally:
            self.alive.discard(plan.profile)


@pytest.fixture
def servers(monkeypatch):
    pretended = Servers()
    monkeypatch.setattr(server, "running", pretended.running)
    monkeypatch.setattr(gate, "endpoint_of", lambda running: running.plan)
    monkeypatch.setattr(answers, "collect", lambda endpoint, *_: endpoint.profile)
    monkeypatch.setattr(gate, "judge", lambda reference, candidate, *_: a_record())
    return pretended


def plans():
    fields = {"model": model.find(str(model.EMBEDDED))}
    return [SimpleNamespace(profile=name, **fields) for name in (gate.REFERENCE, gate.CANDIDATE)]


def judged(tmp_path, seconds=60.0):
    with gate.started(plans(), tmp_path, watch(seconds)) as result:
        return result()


def test_right_answers_pass(servers, tmp_path):
    check = judged(tmp_path)
    assert (check.verdict, check.problems, servers.alive) == ("passed", [], set())
    assert "0.100" in check.detail


def test_a_server_of_the_decoder_that_dies_fails(servers, tmp_path):
    servers.fail[gate.CANDIDATE] = Problem("server", "the server ended with exit code 1\n  | an error", "none")
    check = judged(tmp_path)
    assert check.verdict == "failed" and "\n" not in check.detail and check.problems == ["  | an error"]


def test_a_reference_that_dies_says_nothing_of_the_decoder(servers, tmp_path):
    servers.fail[gate.REFERENCE] = Problem("server", "the server ended; the end of its log:\n  | an error", "a remedy")
    check = judged(tmp_path)
    assert (check.verdict, check.problems) == ("not run", ["  | an error"])
    assert check.detail == "baseline: the server ended; the end of its log; a remedy"


@pytest.mark.parametrize("name", [gate.REFERENCE, gate.CANDIDATE])
def test_a_server_that_is_not_ready_in_time_is_not_run_and_ends(servers, tmp_path, name):
    servers.slow.add(name)
    assert judged(tmp_path, seconds=0.2).verdict == "not run"
    assert servers.alive == set()


def test_no_server_outlives_an_interrupted_run(servers, tmp_path):
    servers.slow |= {gate.REFERENCE, gate.CANDIDATE}
    with pytest.raises(SystemExit), gate.started(plans(), tmp_path, watch(60)):
        raise SystemExit(130)
    assert servers.alive == set()


def test_scores_that_are_complete_when_the_time_ends_count(servers, tmp_path, monkeypatch):
    """Ending a server takes a while, and what it answered is there by then."""
    over = threading.Event()

    def check_time():
        if over.is_set():
            raise OutOfTime("over")

    monkeypatch.setattr(answers, "collect", lambda endpoint, *_: (over.set(), endpoint.profile)[1])
    assert gate._answers(plans()[1], tmp_path, check_time) == gate.CANDIDATE


@pytest.mark.parametrize(
    ("delta", "bound", "expected"), [(0.1, 0.125, "passed"), (0.2, 0.125, "failed"), (0.1, None, "failed")]
)
def test_a_record_passes_only_by_gates_that_are_judged(delta, bound, expected):
    check = gate.verdict(a_record(delta, bound))
    assert check.verdict == expected and bool(check.problems) == (delta > 0.125)


def test_obstacles(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "vllm_build", lambda: ("cpu", "0.32.0"))
    assert "CPU" in gate.obstacle(tmp_path, "lowp")
    monkeypatch.setattr(software, "vllm_build", lambda: ("gpu", "0.26.0"))
    monkeypatch.setattr(gate, "plan_servers", lambda decoder: plans())
    monkeypatch.setattr(preflight, "problems", lambda plan, folder: [])
    assert gate.obstacle(tmp_path, "lowp") is None
    monkeypatch.setattr(preflight, "problems", lambda plan, folder: [Problem("memory", "no memory", "end programs")])
    assert gate.obstacle(tmp_path, "lowp") == "no memory; end programs"

    def none_installed():
        raise Problem("software", "vLLM: none installed", "run: make setup")

    monkeypatch.setattr(software, "vllm_build", none_installed)
    assert gate.obstacle(tmp_path, "lowp") == "vLLM: none installed; run: make setup"


def test_the_servers_are_planned_with_the_decoder(monkeypatch):
    """Also on a GPU that has no certificate yet."""
    monkeypatch.setattr(software, "vllm_build", lambda: ("gpu", "0.33.0"))
    monkeypatch.setattr(plan, "detect", lambda device: RTX)
    reference, candidate = gate.plan_servers("lowp")
    assert (reference.profile, reference.decoder, reference.kv_cache_dtype) == ("baseline", "stock", "auto")
    assert (candidate.profile, candidate.decoder, candidate.kv_cache_dtype) == ("fp8", "lowp", "fp8")
    assert candidate.environment["FP8_SINKS_DECODER"] == "lowp" and "FP8_SINKS_DECODER" not in reference.environment
    assert candidate.environment["FP8_SINKS_CERTIFYING"] == "1"
    assert candidate.arguments["attention-backend"] == "CUSTOM"
    for planned in (reference, candidate):
        assert "forcer" in planned.arguments["logits-processors"] and planned.model.name == model.EMBEDDED.name
        assert planned.arguments.items() >= gate.GPU_ARGUMENTS.items()
    assert reference.port != candidate.port


@pytest.mark.server
@pytest.mark.long
@pytest.mark.fp8_cache
def test_two_real_servers_on_a_cpu_pass(tmp_path, monkeypatch):
    """With stock decoders: both servers side by side, scored and judged by the suite's own bounds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with gate.started(gate.plan_servers("stock"), tmp_path, watch(600)) as result:
        check = result()
    assert check.verdict == "passed", check
