"""Pretended servers, and the command that runs profiles on them."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bench import cli
from bench import kinds as result
from bench.accuracy import forced, greedy, metrics, sink_check
from bench.accuracy.forced import Scored
from bench.accuracy.greedy import Answer
from bench.servers import client
from bench.serving.load import benchy
from kernels_tests.bench.samples import a_rate, a_resolved
from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import plan, provenance, server

LOAD = (0.25, 0, 0)  # averages of a machine at rest


class FakeServers:
    """Fake servers: `plans` that were started, and `fail[event]`, a Problem to raise.

    event: the start of a profile ("fp8 warm"), "greedy", "decode", "prefill", "sinks" or a depth. caches: whether a
    server leaves a file in the run's caches; resolved: resolved settings that are not the usual ones; attempts: at
    points of the grid that have not the usual rate.
    """

    def __init__(self):
        self.plans, self.fail, self.caches, self.resolved, self.attempts = [], {}, True, {}, {}
        self.real_not_run = sink_check.not_run

    def fail_if_set(self, event):
        if event in self.fail:
            raise self.fail[event]

    @contextmanager
    def running(self, planned, folder, status):
        self.plans.append(planned)
        starts = [start.arguments for start in self.plans if start.profile == planned.profile]
        is_first = starts.count(planned.arguments) == 1
        cache = "scored" if "logits-processors" in planned.arguments else "cold" if is_first else "warm"
        self.fail_if_set(f"{planned.profile} {cache}")
        if self.caches:
            (folder.parent / "cache" / "compiled").write_text("kernel")
        resolved = a_resolved(planned.kv_cache_dtype).model_copy(update=self.resolved)
        yield SimpleNamespace(
            plan=planned, log="some.log", start_s=2.0, resolved=resolved, supervisor=SimpleNamespace(pid=1)
        )

    def answer(self, endpoint, prompt, tokens):
        self.fail_if_set("greedy")
        return Answer(prompt=prompt, text="t", token_ids=list(range(tokens)), margins=[1.0] * tokens)

    def score_all(self, endpoint, texts, path, *, progress):
        self.fail_if_set(path)
        targets = [text.ids[text.start :] for text in texts]
        return [
            Scored(token_ids=ids, logprobs=[-1.0] * len(ids), top=[{token: -1.0} for token in ids]) for ids in targets
        ]

    def not_run(self, reason, bounds):
        self.fail_if_set("sinks")
        return self.real_not_run(reason, bounds)

    def measure(self, endpoint, point, runs, folder, book_url, on_request):
        self.fail_if_set(point.depth)
        rate = a_rate(point.depth, point.concurrency, point.output).model_copy(update={"prompt": point.prompt})
        return self.attempts.get(point, rate)


@pytest.fixture
def servers(monkeypatch, tmp_path):
    fake = FakeServers()
    monkeypatch.setattr(plan, "detect", lambda _device: HOST)
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    monkeypatch.setattr(server, "running", fake.running)
    monkeypatch.setattr(client, "first_token_s", lambda *_: 0.1)
    monkeypatch.setattr(greedy, "answer", fake.answer)
    monkeypatch.setattr(forced, "score_all", fake.score_all)
    monkeypatch.setattr(sink_check, "obstacle", lambda *_: "pretended")
    monkeypatch.setattr(sink_check, "not_run", fake.not_run)
    monkeypatch.setattr(benchy, "measure", fake.measure)
    monkeypatch.setattr(metrics, "RESAMPLES", 8)  # most of the remaining time
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def reports(monkeypatch):
    """Folders whose reports were to be written; drawing them would take most of the time."""
    folders = []
    monkeypatch.setattr(cli, "write_report", lambda folder: folders.append(folder) or folder / "report.md")
    return folders


@pytest.fixture
def bench(servers, reports, monkeypatch, tmp_path):
    """A function that runs `fp8-sinks bench WORDS` on an idle machine; without a folder option, in the folder `run`."""
    monkeypatch.setattr(provenance.os, "getloadavg", lambda: LOAD)

    def invoke(*words, exit_code=0):
        options = () if {"--resume", "--run-dir"} & set(words) else ("--run-dir", str(tmp_path / "run"))
        invocation = CliRunner().invoke(cli.bench, [words[0], *options, *words[1:]])
        assert invocation.exit_code == exit_code, (invocation.output, invocation.exception)
        return invocation

    return invoke


@pytest.fixture
def small(tmp_path):
    """A function that writes a user's profile; `changes` are YAML lines added to it."""

    def write(changes="", name="small"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"extends: baseline\n{changes}\n")
        return str(path)

    return write


@pytest.fixture
def suite_file(tmp_path):
    """A function that writes a user's suite for the embedded model; `changes` are YAML lines added to it."""

    def write(changes=""):
        path = tmp_path / "mine-suite.yaml"
        path.write_text(f"extends: tiny_gpt_oss\n{changes}\n")
        return str(path)

    return write


def rows(folder):
    return {row.profile: row for row in result.read(folder).rows}
