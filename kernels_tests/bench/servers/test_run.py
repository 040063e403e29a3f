"""Runs on fake servers: which starts are made, and what a result has of them and of failures."""

import re
from contextlib import nullcontext

import pytest

from bench import kinds as result
from bench.record import command, run_folder, steps
from bench.servers import digest
from bench.serving import tables
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import LOAD, rows
from vllm_launch import redaction
from vllm_launch.terminal import Display


def without_port_and_nonce(command):
    text = "\n".join(command)
    return re.sub(r"--port\n\d+", "--port", re.sub(r"fp8-sinks-[0-9a-f]{16}", "NONCE", text))


def test_the_commands_in_a_result_are_those_that_ran(bench, servers, tmp_path):
    bench("serving", "baseline", "fp8")
    executed = [redaction.redact_all(plan.command) for plan in servers.plans]
    assert len({plan.nonce for plan in servers.plans}) == len(servers.plans) == 6
    for row in rows(tmp_path / "run").values():
        cold, warm, scored = row.starts
        assert [start.cache for start in row.starts] == ["cold", "warm", "scored"]
        assert all(start.command in executed for start in row.starts)
        assert cold.command != warm.command == row.requested.command
        assert without_port_and_nonce(cold.command) == without_port_and_nonce(warm.command)
        assert "--logits-processors" in scored.command and "--logits-processors" not in warm.command
        assert row.requested.environment["FP8_SINKS_RUN"] in warm.command
        assert "logits-processors" not in row.requested.arguments
        assert {start.load_average for start in row.starts} == {LOAD[0]}


def test_a_run_that_caches_nothing_makes_no_warm_start(bench, servers, tmp_path):
    servers.caches = False
    servers.fail[1024] = Problem("requests", "no answer", "see the log")
    bench("serving", "baseline", exit_code=1)
    del servers.fail[1024]
    bench("serving", "--resume", str(tmp_path / "run"))
    row = rows(tmp_path / "run")["baseline"]
    assert [start.cache for start in row.starts] == ["cold", "warm", "scored"], "a resumed run needs a server"
    assert [start.cache for start in tables.timed(row)] == ["cold"], "as warm as the cold one"
    servers.plans.clear()
    bench("serving", "baseline", "--run-dir", str(tmp_path / "whole"))
    row = rows(tmp_path / "whole")["baseline"]
    assert [start.cache for start in row.starts] == ["cold", "scored"] and len(servers.plans) == 2
    assert row.starts[0].cached_files == 0 and row.requested.command == row.starts[0].command
    assert len(row.rates) == 4 and (tmp_path / "whole" / "baseline" / "greedy.json").exists()
    (section,) = result.sections([tmp_path / "whole"])
    assert [line.partition(" (")[0] for line in section.not_measured] == ["baseline: sink check"]


@pytest.mark.parametrize(
    ("resolved", "exit_code"), [({"kv_capacity_tokens": 9}, 0), ({"attention_backends": ["FLASH_ATTN"]}, 1)]
)
def test_a_second_start_that_resolves_different_settings_is_refused(bench, servers, tmp_path, resolved, exit_code):
    servers.fail["greedy"] = Problem("requests", "no answer", "see the log")
    bench("accuracy", "baseline", exit_code=1)
    del servers.fail["greedy"]
    servers.resolved = resolved
    invocation = bench("accuracy", "--resume", str(tmp_path / "run"), exit_code=exit_code)
    assert ("FLASH_ATTN" in invocation.stderr) is bool(exit_code)


def test_a_failed_accuracy_run_misses_no_speed_and_an_untried_serving_profile_does(bench, servers, tmp_path):
    servers.fail |= {f"baseline {start}": Problem("server", "it ended", "see the log") for start in ("cold", "scored")}
    for kind, missed in (("accuracy", False), ("serving", True)):
        bench(kind, "baseline", "fp8", "--run-dir", str(tmp_path / kind), exit_code=1)
        (section,) = result.sections([tmp_path / kind])
        assert [line.partition(":")[0] for line in section.not_measured] == ["baseline", "fp8"]
        for line in section.not_measured:
            assert ("all rates" in line) is missed


def test_an_accuracy_run_has_a_single_start_and_shows_the_capacity(bench, servers, tmp_path):
    assert "fp8: KV cache 671,088 tokens (1.00x baseline)" in bench("accuracy", "fp8").stderr
    (start,) = rows(tmp_path / "run")["fp8"].starts
    assert start.cache == "scored"
    assert start.command == redaction.redact_all(servers.plans[-1].command)
    assert rows(tmp_path / "run")["fp8"].requested.command == start.command


@pytest.mark.parametrize(
    ("broken", "step"),
    [
        ("fp8 cold", "cold start"),
        ("fp8 scored", "scored start"),
        ("fp8 warm", "warm start"),
        ("greedy", "greedy"),
        ("prefill", "log-probabilities"),
        ("sinks", "sinks"),
        (1024, "rates at depth 1024"),
    ],
)
def test_a_failure_names_its_step(bench, servers, tmp_path, broken, step):
    servers.fail[broken] = Problem("requests", "no answer", "see the log")
    bench("serving", "baseline", "fp8", exit_code=1)
    failed = [failure for row in rows(tmp_path / "run").values() for failure in row.failures]
    assert [(failure.step, failure.message) for failure in failed] == [(step, "no answer")]


def test_the_step_of_a_failed_reference_names_it(bench, servers, tmp_path):
    servers.fail["baseline scored"] = Problem("server", "it ended", "see the log")
    bench("accuracy", "fp8", exit_code=1)
    (failure,) = rows(tmp_path / "run")["fp8"].failures
    assert failure.step == "reference baseline: scored start"


def test_a_row_that_cannot_be_made_hides_no_error(bench, servers, tmp_path):
    servers.fail["baseline warm"] = Problem("server", "it ended", "see the log")
    bench("serving", "baseline", exit_code=1)
    (tmp_path / "run" / "baseline" / "rates-0.json").write_text("{")
    assert "it ended" in bench("serving", "--resume", str(tmp_path / "run"), exit_code=1).stderr


def test_the_reference_is_measured_first(bench, servers, tmp_path):
    bench("serving", "fp8", "baseline")
    assert [plan.profile for plan in servers.plans] == ["baseline"] * 3 + ["fp8"] * 3
    assert list(rows(tmp_path / "run")) == ["fp8", "baseline"]


def test_a_reference_without_greedy_answers_hides_no_error(bench, servers, tmp_path):
    bench("serving", "baseline", "fp8")
    (tmp_path / "run" / "baseline" / "greedy.json").unlink()
    servers.fail["baseline warm"] = Problem("server", "it ended", "see the log")
    bench("serving", "--resume", str(tmp_path / "run"), exit_code=1)
    assert rows(tmp_path / "run")["fp8"].greedy == []


def test_a_full_disk_is_a_clear_line(bench, monkeypatch):
    def full(text, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steps, "write_json", full)
    assert "No space left" in bench("serving", "baseline", exit_code=4).stderr


def test_a_file_that_was_only_partly_written_is_no_step(tmp_path):
    (tmp_path / ".request.json.77").write_text("{")
    run_folder.check(tmp_path, run_folder.Request(kind="serving", profiles=["baseline"], model=None, overrides=[]))
    (tmp_path / ".digest.json.77").write_text("{")
    digest.check(tmp_path, {"model": "x"})


def test_a_failed_start_leaves_its_command_and_an_untried_start_none(bench, servers, tmp_path):
    servers.fail["baseline cold"] = Problem("server", "it ended", "see the log")
    bench("serving", "baseline", "fp8", exit_code=1)
    baseline, fp8 = rows(tmp_path / "run").values()
    assert baseline.requested.command == redaction.redact_all(servers.plans[0].command)
    assert baseline.starts == [] and fp8.requested.command == []


def test_a_resumed_run_repeats_no_finished_step(bench, servers, tmp_path):
    servers.fail[1024] = Problem("requests", "no answer", "see the log")
    bench("serving", "baseline", exit_code=1)
    servers.fail.clear()
    before = len(servers.plans)
    bench("serving", "--resume", str(tmp_path / "run"))
    assert len(servers.plans) == before + 1, "the warm start alone, for the rates"
    (row,) = rows(tmp_path / "run").values()
    assert [rate.depth for rate in row.rates] == [0, 0, 0, 1024] and row.failures == []
    assert row.requested.command == row.starts[1].command


@pytest.mark.parametrize(
    ("words", "caches", "names"),
    [
        (["serving", "fp8", "baseline"], True, ["baseline: cold start", "baseline: scored start"]),
        (["serving", "fp8", "baseline"], False, ["baseline: cold start", "baseline: greedy answers"]),
        (["serving", "fp8"], True, ["baseline: scored start", "baseline: greedy answers"]),
        (["accuracy", "fp8"], True, ["baseline: scored start", "baseline: greedy answers"]),
    ],
)
def test_the_steps_shown_are_the_files_that_a_run_writes_in_order(bench, servers, monkeypatch, words, caches, names):
    shown = []
    display = Display(status=lambda text: None, print_line=lambda text: None, show_steps=shown.append)
    monkeypatch.setattr(command, "progress", lambda: nullcontext(display))
    servers.caches = caches
    bench(*words)
    assert [each.name for each in shown[-1]][:2] == names
    ends = [each.path.stat().st_mtime_ns for each in shown[-1]]
    assert ends == sorted(ends)
    assert len(shown) == (1 if caches else 3), "again for each profile that is measured on its cold server"


def test_a_resumed_run_shows_the_steps_of_a_warm_start_after_all(bench, servers, monkeypatch, tmp_path):
    servers.caches = False
    servers.fail[1024] = Problem("requests", "no answer", "see the log")
    bench("serving", "baseline", exit_code=1)
    servers.fail.clear()
    shown = []
    display = Display(status=lambda text: None, print_line=lambda text: None, show_steps=shown.append)
    monkeypatch.setattr(command, "progress", lambda: nullcontext(display))
    bench("serving", "--resume", str(tmp_path / "run"))
    (steps_shown,) = shown
    assert "baseline: warm start" in [each.name for each in steps_shown]
    assert all(each.path.exists() for each in steps_shown)
