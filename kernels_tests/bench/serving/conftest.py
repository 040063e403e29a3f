"""External stub servers, and the command that measures them."""

import pytest
from click.testing import CliRunner

from bench import cli, kinds
from bench.accuracy import metrics, sink_check
from bench.servers import external
from bench.serving import plot
from bench.serving.load import benchy
from kernels_tests.bench.conftest import LOAD
from kernels_tests.bench.samples import a_rate
from kernels_tests.bench.stub_server import stub_server
from vllm_launch import provenance

SUITE = """
extends: tiny_gpt_oss
grid: {prompt: [256], output: [64], depth: [0, 512], concurrency: [1], runs: 1}
texts: {contexts: [{context: 128, texts: 4, tokens: 16}]}
"""


@pytest.fixture
def stub():
    with stub_server() as server:
        yield server


@pytest.fixture
def reference():
    with stub_server() as server:
        yield server


@pytest.fixture
def serving(monkeypatch, tmp_path):
    """A function that runs `fp8-sinks bench serving WORDS` with a small suite in the folder `run`, without benchy."""
    monkeypatch.setattr(benchy, "measure", lambda _endpoint, point, *_: a_rate(point.depth))
    monkeypatch.setattr(sink_check, "obstacle", lambda *_: "pretended")
    monkeypatch.setattr(plot, "serving_plot", lambda _title, _rows, path: path.touch())  # drawing takes long
    monkeypatch.setattr(provenance.os, "getloadavg", lambda: LOAD)
    monkeypatch.setattr(metrics, "RESAMPLES", 8)
    monkeypatch.delenv(external.KEY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SUITE)

    def invoke(*words, exit_code=0):
        resumed = "--resume" in words
        options = [] if resumed else ["--run-dir", "run", *([] if "--suite" in words else ["--suite", "small.yaml"])]
        invocation = CliRunner().invoke(cli.bench, ["serving", *options, *words])
        assert invocation.exit_code == exit_code, (invocation.output, invocation.exception)
        return invocation

    return invoke


def row_of(tmp_path):
    """The row of the result in the folder `run`."""
    (row,) = kinds.read(tmp_path / "run").rows
    return row
