"""Pretended servers, and a pretended machine with a GPU: its kernels are torch functions, their times made up."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from bench import cli
from bench import kinds as result
from bench.accuracy import forced, metrics, sink_check
from bench.accuracy.forced import Scored
from bench.kernels import exact, measure, peers, timing
from bench.kernels import run as runs
from bench.servers import client as completion
from bench.servers.client import Answer
from bench.serving import benchy
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import Status
from kernels_tests.bench.samples import a_rate, a_resolved, a_result
from kernels_tests.vllm_launch.machines import HOST
from lowp.paged import inputs
from lowp.paged.shapes import even
from vllm_launch import plan, provenance, server

LOAD = (0.25, 0, 0)  # averages of a machine at rest
SHAPES = (even(2, 512),)


def a_status(state="applied") -> Status:
    patch_set = "0.6.14+0123456789ab" if state == "applied" else None
    return Status(target="/x", version="0.6.14", state=state, files={}, patch_set=patch_set, fingerprint="0" * 12)


def refused(kernels=peers.KERNELS, named=False) -> Problem:
    """What check() says of a machine that it refuses."""
    with pytest.raises(Problem) as caught:
        runs.check(kernels, named)
    assert caught.value.kind == "software" and "\n" not in caught.value.message and caught.value.remedy
    return caught.value


@pytest.fixture
def gpu_machine(monkeypatch, tmp_path):
    """A machine with a GPU and a patched FlashInfer and no vLLM, as far as check() and provenance look."""
    monkeypatch.setattr(runs.machine, "detect", lambda _device: a_result(gpu=True).provenance.machine)
    monkeypatch.setattr(runs.package, "installed", lambda: tmp_path)
    monkeypatch.setattr(runs.package, "version", lambda _target: "0.6.14")
    monkeypatch.setattr(runs.engine, "status", a_status)
    monkeypatch.setattr(runs.provenance, "collect", lambda *_: a_result(gpu=True).provenance)
    monkeypatch.setattr(runs.vllm_peers, "find_spec", lambda _name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


def _flashinfer_that_writes_when_imported(patch, site):
    """As the real one does: its generated files begin with the import."""
    (site / "flashinfer").mkdir(parents=True)
    code = "import os, pathlib\npathlib.Path(os.environ['FLASHINFER_WORKSPACE_BASE'], '.cache').mkdir(parents=True)\n"
    (site / "flashinfer" / "__init__.py").write_text(code)
    patch.syspath_prepend(site)
    patch.setitem(sys.modules, "flashinfer", None)
    del sys.modules["flashinfer"]


@pytest.fixture
def fake_device(gpu_machine, tmp_path):
    """The whole run on a CPU: a replay's times are the same for all; `calls` counts what was prepared."""
    prepared = []

    def prepare(made, kv_format, setting, sinks):
        def call(layer):
            for row in range(made.shape.batch):
                made.out[layer][row] = exact.attention(made, kv_format, layer, row, sinks=sinks)

        prepared.append((str(made.shape), kv_format, setting))
        if setting == "broken" or (setting == "broken with 128" and made.shape.head_dim == 128):
            raise RuntimeError(f"cannot at {made.shape}\n in {tmp_path}")
        return [lambda layer=layer: call(layer) for layer in range(len(made.q) if setting != "lazy" else 0)]

    def graph_us(calls, clear):
        clear()
        for call in calls:
            call()
        return [10.0, 12.0, 11.0] if calls else [1.0]

    build = inputs.build
    gpu_machine.setattr(inputs, "build", lambda shape, layers: build(shape, min(layers, 2), "cpu"))
    gpu_machine.setattr(timing, "graph_us", graph_us)
    gpu_machine.setattr(torch.cuda, "synchronize", lambda: None)
    _flashinfer_that_writes_when_imported(gpu_machine, tmp_path / "site")
    gpu_machine.setitem(sys.modules, "bench.kernels.ceiling", SimpleNamespace(read_ceiling=lambda: 4e12))
    gpu_machine.setattr(runs.jit_cache, "workspace", lambda root: root / "flashinfer-0.6.14+x")
    for name in (*runs.CACHE_VARIABLES, "VLLM_LOGGING_STREAM"):
        gpu_machine.setenv(name, "the user's own")

    def kernel(name, kv_format="e4m3", settings=("right",), source="flashinfer", sinks=True):
        return peers.Kernel(name, kv_format, source, sinks, source == "flashinfer", prepare, settings)

    def execute(*kernels, shapes=SHAPES, named=False):
        said = []
        run = tmp_path / "run"
        request = measure.Request(list(kernels), list(shapes), run, ["fp8-sinks"], said.append, said.append, named)
        return runs.execute(request), said

    return SimpleNamespace(kernel=kernel, execute=execute, patch=gpu_machine, folder=tmp_path, prepared=prepared)


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
