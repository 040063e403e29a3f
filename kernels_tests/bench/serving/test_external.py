"""`bench serving --url` against stub servers: what is measured there, and what is not known or not offered."""

import pytest
from click.testing import CliRunner

from bench import cli, kinds
from bench.accuracy.tables import not_known, outcome
from bench.servers import external
from bench.serving.load import benchy
from bench.serving.section import UNFINISHED
from bench.serving.tables import shown_rates
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import a_rate
from kernels_tests.bench.serving.conftest import row_of
from kernels_tests.bench.stub_server import CARD
from vllm_launch.model import EMBEDDED

KEY = "key-of-the-stub"
DESCRIBING_PATHS = ["/v1/models", "/version", "/metrics"]


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
    assert reason == "decode log-probabilities (reference: the server lacks our token forcer)"
    (section,) = kinds.sections([tmp_path / "run"])
    assert len(section.not_measured) == 1 and reason in section.not_measured[0]
    section.draw(tmp_path / "plot.png")


def test_a_server_without_any_log_probabilities_has_rates_and_greedy_answers(serving, stub, tmp_path):
    stub.prefill = False
    serving("--url", stub.url)
    row = row_of(tmp_path)
    assert row.accuracy is None and len(row.unavailable) == 2 and "HTTP 400" in row.unavailable[1]
    assert shown_rates(row) == row.rates != [] and len(row.greedy) == 3


@pytest.mark.parametrize("status", [400, 404, 501])
def test_a_server_without_completions_has_rates_without_a_record(serving, stub, tmp_path, status):
    stub.status = status
    assert "withholds the speeds" in serving("--url", stub.url).stderr
    row = row_of(tmp_path)
    assert row.rates and len(row.unavailable) == 3
    (statement,) = not_known([row])
    assert "not compared" in statement and "reference server" not in statement


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_failure_that_may_pass_is_not_saved_as_not_offered(serving, stub, tmp_path, status):
    stub.status = status
    serving("--url", stub.url, exit_code=1)
    assert row_of(tmp_path).unavailable == []
    stub.status = 200
    serving("--resume", "run")
    row = row_of(tmp_path)
    assert row.accuracy and len(row.greedy) == 3 and len(row.unavailable) == 1


def test_a_server_without_token_ids_has_rates_without_a_record(serving, stub, tmp_path):
    stub.token_ids = False
    serving("--url", stub.url)
    row = row_of(tmp_path)
    assert row.rates and shown_rates(row) == [] and row.greedy == []
    assert len(row.unavailable) == 3


def test_a_profile_selects_the_bounds_and_nothing_else(serving, stub, reference, tmp_path):
    reference.log_p = -1.25
    serving("fp8", "--url", stub.url, "--reference-url", reference.url, exit_code=3)
    row = row_of(tmp_path)
    assert row.profile == "server" and row.requested is None
    (statement,) = not_known([row])
    assert "bounds of fp8" in statement
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
    assert row.unfinished == ["log-probabilities", "repeated log-probabilities", "sinks"]
    greedy = tmp_path / "run" / "server" / "greedy.json"
    written_at = greedy.stat().st_mtime_ns
    serving("--resume", "run")
    row = row_of(tmp_path)
    assert row.accuracy and row.failures == row.unfinished == []
    assert greedy.stat().st_mtime_ns == written_at, "greedy answers are compared, and not written again"


def test_a_dry_run_asks_for_the_models_alone(serving, stub, reference, tmp_path, monkeypatch):
    monkeypatch.setenv(external.KEY_VARIABLE, KEY)
    output = serving("--url", stub.url, "--reference-url", reference.url, "--dry-run").output
    assert stub.paths() == reference.paths() == DESCRIBING_PATHS
    assert stub.url in output and reference.url in output and KEY not in output
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_lists_missing_points_and_answers(serving, stub, tmp_path, monkeypatch):
    def interrupted(_endpoint, point, *_):
        if point.depth:
            raise KeyboardInterrupt
        return a_rate()

    with monkeypatch.context() as interrupting:
        interrupting.setattr(benchy, "measure", interrupted)
        serving("--url", stub.url, exit_code=1)
    (section,) = kinds.sections([tmp_path / "run"])
    missing = "rates at 1 of 2 points, log-probabilities, repeated log-probabilities, sinks"
    assert section.not_measured[0].startswith(f"server: {missing}")
    assert UNFINISHED in section.page
    serving("--resume", "run")
    (section,) = kinds.sections([tmp_path / "run"])
    assert UNFINISHED not in section.page and not any("rates at" in line for line in section.not_measured)


@pytest.mark.parametrize(("name", "change"), [("tiny", {"root": None}), ("other", {"id": "/models/other"})])
def test_the_model_of_the_reference_is_in_the_result(serving, stub, reference, tmp_path, name, change):
    reference.cards = [CARD | change]
    options = ("--quick", "--model", str(EMBEDDED))
    assert "same model?" not in serving("--url", stub.url, "--reference-url", reference.url, *options).stderr
    assert kinds.read(tmp_path / "run").reference_model == name


def test_a_reference_with_another_model_is_pointed_out(serving, stub, reference, tmp_path):
    reference.cards = [CARD | {"id": "other", "root": "elsewhere"}]
    options = ("--quick", "--model", str(EMBEDDED))
    assert "same model?" in serving("--url", stub.url, "--reference-url", reference.url, *options).stderr
    (section,) = kinds.sections([tmp_path / "run"])
    assert "The reference server serves other." in section.page
