"""`bench serving --url` against stub servers: what is measured there, what is not known, what is refused."""

import json
import socket

import pytest
from click.testing import CliRunner

from bench import cli, kinds
from bench.accuracy import metrics, sink_check
from bench.accuracy.tables import outcome
from bench.servers import running
from bench.serving import benchy
from bench.serving.tables import shown_rates
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_rate
from kernels_tests.bench.stub_server import CARD, stub_server
from vllm_launch.model import EMBEDDED

SUITE = """
extends: tiny_gpt_oss
grid: {prompt: [256], output: [64], depth: [0, 512], concurrency: [1], runs: 1}
texts: {contexts: [{context: 128, texts: 4, tokens: 16}]}
"""
KEY = "key-of-the-stub"


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
    monkeypatch.setattr(benchy, "measure", lambda endpoint, grid, depth, *_: [a_rate(depth)])
    monkeypatch.setattr(sink_check, "obstacle", lambda *_: "pretended")
    monkeypatch.setattr(metrics, "RESAMPLES", 8)
    monkeypatch.delenv(running.KEY_VARIABLE, raising=False)
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
    (row,) = kinds.read(tmp_path / "run").rows
    return row


def test_settings_and_starts_are_not_known(serving, stub, tmp_path):
    serving("--url", stub.url)
    row = row_of(tmp_path)
    assert (row.profile, row.requested, row.resolved, row.wiped, row.starts) == ("server", None, None, None, [])
    assert [rate.depth for rate in row.rates] == [0, 512] and row.failures == []
    report = (tmp_path / "run" / "report.md").read_text()
    assert report.count("not known") >= 2 and "resolved settings" not in report
    (section,) = kinds.sections([tmp_path / "run"])
    assert "CPU" not in section.subject and section.glance


def test_a_server_without_reference_answers_for_itself(serving, stub, tmp_path):
    serving("--url", stub.url)
    row = row_of(tmp_path)
    assert [(match.reference, match.passed) for match in row.greedy] == [("server", True)] * 3
    assert outcome(row, row) == "reference" and shown_rates(row) == row.rates
    assert row.accuracy.reference == "server" and row.accuracy.prefill.mean_abs_delta.value == 0


def test_answers_are_compared_with_the_reference_server(serving, stub, reference, tmp_path):
    reference.log_p, reference.cards = -1.25, [CARD | {"id": "another-name"}]
    serving("--url", stub.url, "--reference-url", reference.url)
    row = row_of(tmp_path)
    assert [(match.reference, match.passed) for match in row.greedy] == [("reference", True)] * 3
    assert row.accuracy.reference == "reference"
    assert row.accuracy.prefill.mean_abs_delta.value == pytest.approx(0.25)
    assert "/v1/chat/completions" not in reference.paths(), "no rates of the reference"


def test_other_greedy_answers_than_the_reference_fail_the_gate(serving, stub, reference, tmp_path):
    reference.first = 200
    serving("--url", stub.url, "--reference-url", reference.url, "--quick", exit_code=3)
    assert [match.matched for match in row_of(tmp_path).greedy] == [0, 0, 0]


def test_forced_decode_is_measured_where_both_servers_have_it(serving, stub, reference, tmp_path):
    stub.forcer = reference.forcer = True
    serving("--url", stub.url, "--reference-url", reference.url)
    row = row_of(tmp_path)
    assert row.accuracy.decode.tokens == row.accuracy.prefill.tokens == 4 * 16 and row.unavailable == []


def test_without_forcer_prefill_alone_is_scored(serving, stub, reference, tmp_path):
    stub.forcer = True
    serving("--url", stub.url, "--reference-url", reference.url)
    row = row_of(tmp_path)
    assert row.accuracy.decode is None and row.accuracy.paths is None and row.accuracy.prefill
    (reason,) = row.unavailable
    assert reason.startswith("decode log-probabilities (reference: ")
    (section,) = kinds.sections([tmp_path / "run"])
    assert len(section.not_measured) == 1 and reason in section.not_measured[0]
    section.draw(tmp_path / "plot.png")


def test_a_server_without_any_log_probabilities_has_rates_and_greedy_answers(serving, stub, tmp_path):
    stub.prefill = False
    serving("--url", stub.url)
    row = row_of(tmp_path)
    assert row.accuracy is None and len(row.unavailable) == 2 and "HTTP 400" in row.unavailable[1]
    assert shown_rates(row) == row.rates != [] and len(row.greedy) == 3


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_completions_has_rates_without_a_record(serving, stub, tmp_path, status):
    stub.status = status
    serving("--url", stub.url)
    assert row_of(tmp_path).rates and len(row_of(tmp_path).unavailable) == 3


def test_a_server_without_token_ids_has_rates_without_a_record(serving, stub, tmp_path):
    stub.token_ids = False
    serving("--url", stub.url)
    row = row_of(tmp_path)
    assert row.rates and shown_rates(row) == [] and row.greedy == []
    assert len(row.unavailable) == 3


def test_a_profile_names_the_bounds_and_nothing_else(serving, stub, reference, tmp_path):
    reference.log_p = -1.25
    serving("fp8", "--url", stub.url, "--reference-url", reference.url, exit_code=3)
    row = row_of(tmp_path)
    assert row.profile == "fp8" and row.requested is None and "FP8" not in row.description
    assert row.accuracy.passed is False, "0.25 is above the bounds of fp8"


def test_a_quick_run_takes_greedy_answers_and_a_point(serving, stub, tmp_path):
    serving("--url", stub.url, "--quick")
    row = row_of(tmp_path)
    assert row.accuracy is None and len(row.greedy) == 3 and [rate.depth for rate in row.rates] == [0]
    assert row.left_out == ["log-probabilities", "sinks", "rates at 1 of 2 points"]
    assert CliRunner().invoke(cli.bench, ["keep", "run"]).exit_code == 2


def test_a_result_is_kept_reported_and_compared_by_force_alone(serving, stub, tmp_path):
    serving("--url", stub.url)
    for words in (["keep", "run"], ["report", "run"], ["compare", "run", "run", "--force"]):
        invocation = CliRunner().invoke(cli.bench, words)
        assert invocation.exit_code == 0, (invocation.output, invocation.exception)
    assert "not known" in invocation.output
    assert CliRunner().invoke(cli.bench, ["compare", "run", "run"]).exit_code == 2


def test_rates_before_a_failure_are_saved_and_the_run_resumes(serving, stub, tmp_path, monkeypatch):
    def fail(*_):
        raise Problem("requests", f"cannot connect to host 127.0.0.1:{stub.server_port}", "see the log")

    with monkeypatch.context() as failing:
        failing.setattr("bench.accuracy.forced.score_all", lambda *_, **__: fail())
        serving("--url", stub.url, exit_code=1)
    row = row_of(tmp_path)
    assert len(row.rates) == 2 and row.failures[0].step == "log-probabilities"
    assert "127.0.0.1" not in row.failures[0].message
    stub.calls.clear()
    serving("--resume", "run")
    row = row_of(tmp_path)
    assert row.accuracy and row.failures == []
    assert not any(isinstance(body["prompt"], str) for _, _, body in stub.calls if body), "greedy answers are loaded"


def test_a_resumed_run_refuses_another_model_at_the_same_url(serving, stub):
    serving("--url", stub.url, "--quick")
    stub.cards = [CARD | {"max_model_len": 2048}]
    serving("--resume", "run", exit_code=2)


def test_the_key_goes_to_the_servers_alone_and_into_no_file(serving, stub, tmp_path, monkeypatch):
    stub.key = KEY
    serving("--url", stub.url, exit_code=1)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(running.KEY_VARIABLE, KEY)
    assert KEY not in serving("--url", stub.url).output
    assert {authorization for _, authorization, _ in stub.calls} == {None, f"Bearer {KEY}"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


def test_no_host_is_in_result_and_report(serving, stub, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fp8-sinks", "bench", "serving", "--url", f"{stub.url}/v1"])
    serving("--url", f"{stub.url}/v1")
    for name in ("result.json", "report.md"):
        text = (tmp_path / "run" / name).read_text()
        assert "127.0.0.1" not in text and str(stub.server_port) not in text
    assert json.loads((tmp_path / "run" / "request.json").read_text())["url"] == stub.url


def test_a_dry_run_asks_for_the_models_alone(serving, stub, reference, tmp_path, monkeypatch):
    monkeypatch.setenv(running.KEY_VARIABLE, KEY)
    output = serving("--url", stub.url, "--reference-url", reference.url, "--dry-run").output
    assert stub.paths() == reference.paths() == ["/v1/models"]
    assert stub.url in output and reference.url in output and KEY not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "127.0.0.1:8000"],
        ["--url", "ftp://127.0.0.1"],
        ["--url", "http://user:secret@127.0.0.1:8000"],
        ["--url", "http://127.0.0.1:8000/?key=secret"],
        ["--url", "http://127.0.0.1:99999"],
        ["--url", "http://127.0.0.1:8000", "--reference-url", "http://127.0.0.1:8000/v1/"],
        ["--reference-url", "http://127.0.0.1:8000"],
        ["--url", "http://127.0.0.1:8000", "baseline", "fp8"],
        ["--url", "http://127.0.0.1:8000", "fp8", "--", "--seed", "1"],
        ["--url", "http://127.0.0.1:8000", "--", "--seed", "1"],
        ["--resume", "run", "--url", "http://127.0.0.1:8000"],
    ],
)
def test_a_wrong_request_is_refused(serving, tmp_path, words):
    assert "secret" not in serving(*words, exit_code=2).output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://Some.Host/v1/", "https://some.host"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://host/proxy/v1", "http://host/proxy"),
    ],
)
def test_a_url_may_end_in_v1(text, url):
    assert running.base_url(text) == url


def test_a_url_where_nothing_answers_is_refused(serving, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        serving("--url", f"http://127.0.0.1:{probe.getsockname()[1]}", exit_code=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": [{"name": "tiny"}]}'])
def test_another_program_than_a_server_is_refused(serving, stub, body):
    stub.models_body = body
    serving("--url", stub.url, exit_code=1)


def test_several_models_need_a_name(serving, stub, tmp_path):
    stub.cards = [CARD, CARD | {"id": "alias"}]
    serving("--url", stub.url, "--dry-run")
    stub.cards = [CARD | {"root": "base"}, CARD | {"id": "adapter", "root": "lora"}]
    output = serving("--url", stub.url, exit_code=4).output
    assert "tiny" in output and "adapter" in output and "--model" in output
    stub.cards = [CARD | {"id": EMBEDDED.name, "root": "base"}, CARD | {"id": "adapter", "root": "lora"}]
    assert f"model {EMBEDDED.name}," in serving("--url", stub.url, "--model", str(EMBEDDED), "--dry-run").output


def test_a_model_that_is_not_on_this_machine_has_to_be_named(serving, stub):
    stub.cards = [CARD | {"root": "/models/elsewhere"}]
    assert "--model" in serving("--url", stub.url, exit_code=4).output
    serving("--url", stub.url, "--model", str(EMBEDDED), "--dry-run")


def test_a_grid_longer_than_the_server_serves_is_refused(serving, stub, tmp_path):
    stub.cards = [CARD | {"max_model_len": 831}]
    serving("--url", stub.url, exit_code=2)
    assert stub.paths() == ["/v1/models"] and not (tmp_path / "run").exists()
    stub.cards = [CARD | {"max_model_len": 832}]
    serving("--url", stub.url)


def test_texts_longer_than_the_server_serves_are_not_scored(serving, stub, tmp_path):
    stub.cards = [CARD | {"max_model_len": 140}]
    serving("--url", stub.url, "--prompt", "32", "--output", "32", "--depth", "0")
    assert row_of(tmp_path).accuracy is None and len(row_of(tmp_path).unavailable) == 2


def test_tokens_before_the_prompt_are_no_other_tokenizer(serving, stub):
    stub.prefix = [7]
    serving("--url", stub.url, "--quick")


@pytest.mark.parametrize("name", ["stub", "reference"])
def test_a_server_with_another_tokenizer_is_refused(serving, stub, reference, tmp_path, name):
    mistaken = {"stub": stub, "reference": reference}[name]
    mistaken.tokenize = lambda _: [1, 2, 3]
    assert mistaken.url in serving("--url", stub.url, "--reference-url", reference.url, exit_code=4).output
    assert row_of(tmp_path).rates == [] and "127.0.0.1" not in row_of(tmp_path).failures[0].message
