"""Pretended servers, and the command that runs profiles on them."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bench import cli
from bench import kinds as result
from bench.accuracy import forced, metrics, sink_check
from bench.accuracy.forced import Scored
from bench.servers import client as completion
from bench.servers.client import Answer
from bench.serving import benchy
from kernels_tests.bench.samples import a_rate, a_resolved
from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import plan, provenance, server

LOAD = (0.25, 0, 0)  # averages of a machine at rest


@pytest.fixture
def servers(monkeypatch, tmp_path):
    """Pretended servers, with all that is asked of them: `plans` that were started, and `fail[what]` to raise.

    what: the start of a profile ("fp8 warm"), "greedy", "decode", "prefill", "sinks" or a depth. state.caches:
    whether a server leaves a file in the run's caches; state.resolved: what it resolves otherwise than usual.
    """
    plans, fail, state = [], {}, SimpleNamespace(caches=True, resolved={})

    def maybe(what):
        if what in fail:
            raise fail[what]

    @contextmanager
    def running(planned, folder, say):
        plans.append(planned)
        forced_tokens = "logits-processors" in planned.arguments
        earlier = [one for one in plans if one.profile == planned.profile and one.arguments == planned.arguments]
        cache = "scored" if forced_tokens else "cold" if len(earlier) == 1 else "warm"
        maybe(f"{planned.profile} {cache}")
        if state.caches:
            (folder.parent / "cache" / "compiled").write_text("kernel")
        resolved = a_resolved(planned.kv_cache_dtype).model_copy(update=state.resolved)
        yield SimpleNamespace(
            plan=planned, log="some.log", start_s=2.0, resolved=resolved, supervisor=SimpleNamespace(pid=1)
        )

    def greedy(running, prompt, tokens):
        maybe("greedy")
        return Answer(prompt=prompt, text="t", token_ids=list(range(tokens)), margins=[1.0] * tokens)

    def score_all(running, texts, by, *, progress):
        maybe(by)
        ids = [text.ids[text.start :] for text in texts]
        return [Scored(token_ids=of, logprobs=[-1.0] * len(of), top=[{token: -1.0} for token in of]) for of in ids]

    def not_run(reason, bounds):
        maybe("sinks")
        return sinks_not_run(reason, bounds)

    sinks_not_run = sink_check.not_run

    def measured(running, grid, depth, folder, book_url, on_request):
        maybe(depth)
        return [a_rate(depth)]

    monkeypatch.setattr(plan, "detect", lambda _device: HOST)
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    monkeypatch.setattr(server, "running", running)
    monkeypatch.setattr(completion, "first_token_s", lambda *_: 0.1)
    monkeypatch.setattr(completion, "greedy", greedy)
    monkeypatch.setattr(forced, "score_all", score_all)
    monkeypatch.setattr(sink_check, "obstacle", lambda *_: "pretended")
    monkeypatch.setattr(sink_check, "not_run", not_run)
    monkeypatch.setattr(benchy, "measure", measured)
    monkeypatch.setattr(metrics, "RESAMPLES", 8)  # most of the time that is left
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(plans=plans, fail=fail, state=state)


@pytest.fixture
def reports(monkeypatch):
    """Reports that were to be written; drawing them takes longer than all else here."""
    written = []
    monkeypatch.setattr(cli, "_reports", lambda: SimpleNamespace(write=lambda *_, name: written.append(name) or name))
    return written


@pytest.fixture
def bench(servers, reports, monkeypatch, tmp_path):
    """A function that runs `fp8-sinks bench WORDS` on a machine at rest; without options, in the folder `run`."""
    monkeypatch.setattr(provenance.os, "getloadavg", lambda: LOAD)

    def invoke(*words, exit_code=0):
        options = () if {"--resume", "--run-dir"} & set(words) else ("--run-dir", str(tmp_path / "run"))
        done = CliRunner().invoke(cli.bench, [words[0], *options, *words[1:]])
        assert done.exit_code == exit_code, (done.output, done.exception)
        return done

    return invoke


@pytest.fixture
def small(tmp_path):
    """A profile file of a user; `changes` are YAML lines added to it."""

    def write(changes="", name="small"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"extends: baseline\n{changes}\n")
        return str(path)

    return write


def rows(folder):
    return {row.profile: row for row in result.read(folder).rows}
