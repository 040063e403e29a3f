"""`bench serving --quick`, on fake servers: its starts, its accuracy record and its report."""

import pytest
from click.testing import CliRunner

from bench import cli, kinds
from bench.accuracy.tables import outcome
from bench.serving.tables import profile_table, shown_rates
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import rows


@pytest.mark.parametrize("caches", [True, False])
def test_a_quick_run_starts_each_profile_once(bench, servers, tmp_path, caches):
    servers.caches = caches
    bench("serving", "fp8", "baseline", "--quick")
    assert [plan.profile for plan in servers.plans] == ["baseline", "fp8"]
    assert not any("logits-processors" in plan.arguments for plan in servers.plans)
    for row in rows(tmp_path / "run").values():
        assert [start.cache for start in row.starts] == ["cold"] and row.wiped
        assert [rate.depth for rate in row.rates] == [0]
        assert row.accuracy is None and row.failures == []


def test_greedy_answers_are_the_record_of_every_profile_also_of_the_reference(bench, tmp_path):
    bench("serving", "baseline", "fp8", "--quick")
    baseline, fp8 = rows(tmp_path / "run").values()
    for row in (baseline, fp8):
        assert [(match.reference, match.passed) for match in row.greedy] == [("baseline", True)] * 3
        assert shown_rates(row) == row.rates != []
    assert "not shown" not in "".join(profile_table([baseline, fp8], baseline))
    assert [outcome(row, baseline) for row in (baseline, fp8)] == ["reference", "pass"]


def test_a_whole_run_has_no_greedy_record_of_the_reference(bench, tmp_path):
    bench("serving", "baseline")
    row = rows(tmp_path / "run")["baseline"]
    assert row.greedy == [] and row.left_out == []


def test_the_report_of_a_quick_run_lists_skipped_measurements(bench, tmp_path):
    bench("serving", "baseline", "fp8", "--quick")
    (section,) = kinds.sections([tmp_path / "run"])
    left_out = "log-probabilities, sinks, warm start, rates at 3 of 4 points"
    assert section.not_measured == [f"baseline: {left_out}", f"fp8: {left_out}"]
    section.draw(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists() and section.glance


def test_two_quick_profiles_are_compared(bench, tmp_path):
    bench("serving", "baseline", "fp8", "--quick")
    profiles = [f"{tmp_path / 'run'}:{name}" for name in ("baseline", "fp8")]
    invocation = CliRunner().invoke(cli.bench, ["compare", *profiles])
    assert invocation.exit_code == 0, invocation.output


def test_the_reference_of_a_quick_run_is_served_for_its_greedy_answers(bench, servers, tmp_path):
    bench("serving", "fp8", "--quick")
    assert [plan.profile for plan in servers.plans] == ["baseline", "fp8"]
    assert not any("logits-processors" in plan.arguments for plan in servers.plans)
    assert not (tmp_path / "run" / "baseline" / "rates-0.json").exists()
    assert [match.passed for match in rows(tmp_path / "run")["fp8"].greedy] == [True] * 3


@pytest.mark.parametrize("event", ["greedy", 0])
def test_a_quick_run_is_resumed_as_a_quick_run(bench, servers, tmp_path, event):
    servers.fail[event] = Problem("requests", "no answer", "see the log")
    bench("serving", "baseline", "fp8", "--quick", exit_code=1)
    servers.fail.clear()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert [plan.profile for plan in servers.plans] == ["baseline", "baseline", "fp8"]
    assert [row.failures for row in rows(tmp_path / "run").values()] == [[], []]
    bench("serving", "--resume", str(tmp_path / "run"))
    assert len(servers.plans) == 3, "nothing is missing"


def test_a_reference_that_answers_differently_when_repeated_fails_its_gate(bench, servers, monkeypatch, tmp_path):
    answer, count = servers.answer, iter(range(100))

    def wandering(endpoint, prompt, tokens):
        number = next(count)
        return answer(endpoint, prompt, tokens).model_copy(update={"token_ids": [number] * tokens})

    monkeypatch.setattr("bench.accuracy.greedy.answer", wandering)
    bench("serving", "baseline", "fp8", "--quick", exit_code=3)
    baseline, fp8 = rows(tmp_path / "run").values()
    assert [match.passed for match in baseline.greedy] == [False] * 3
    passing = fp8.model_copy(update={"greedy": [match.model_copy(update={"passed": True}) for match in fp8.greedy]})
    assert outcome(passing, baseline) == "FAILED", "nothing passes against a failed reference"
