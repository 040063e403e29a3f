"""`bench serving` with real servers and real llama-benchy on a small grid: killed, resumed, gated, reported."""

import json
import os
import signal
import sys
import time
from contextlib import suppress

import psutil
import pytest

from bench import kinds as result
from bench.commands import write_report
from kernels_tests.bench.serving import small
from kernels_tests.processes import completed, spawn, wait_for, watched
from vllm_launch import model, redaction

pytestmark = pytest.mark.server


def supervised(processes):
    """Yield the commands that the supervisors among `processes` run."""
    for process in processes:
        with suppress(psutil.Error):
            words = process.cmdline()
            if "vllm_launch.supervisor" in words:
                yield tuple(words[words.index("--") + 1 :])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fp8_cache):
    """Run two profiles, kill the launcher halfway, resume; all tests here share it.

    The second profile has an FP8 cache, or is the first again where no server with one runs.
    """
    folder = tmp_path_factory.mktemp("serving")
    bases = {"small-baseline": "baseline", "small-second": "fp8" if fp8_cache else "baseline"}
    command = small.command(folder, bases, [0, 128])
    run, commands = folder / "run", set()
    with watched() as live:

        def halfway():
            time.sleep(1)
            commands.update(supervised(live()))
            if (run / "small-baseline" / "cold.json").exists() and not (run / "small-second").exists():
                (run / "cache" / "planted").write_text("on a CPU vLLM itself may cache nothing")
            return (run / "small-second" / "rates-128.json").exists() or killed.poll() is not None

        log = folder / "killed.log"
        with log.open("w") as stderr:
            killed = spawn([*command, "--run-dir", str(run)], stderr=stderr)
        wait_for(halfway, small.RUN_S)
        assert killed.poll() is None, f"it ended before it could be killed: {log.read_text()[-2000:]}"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        wait_for(lambda: not live(), 60)
    (folder / "commands.json").write_text(json.dumps(sorted(commands)))
    before = {path: path.read_bytes() for path in (run / "small-baseline").glob("*.json*")}
    assert {"cold.json", "scored.json", "sinks.json", "rates-128.json"} <= {path.name for path in before}
    assert not (run / "result.json").exists()
    resumed = completed([*small.BENCH, "--resume", str(run)], small.RUN_S)
    assert resumed.returncode == 0, resumed.stderr
    repeated = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert repeated == [], "a finished step was measured again"
    return run


def test_the_result_has_starts_rates_and_provenance(finished):
    measured = result.read(finished / "result.json")
    assert measured.model.name == "tiny_gpt_oss"
    assert measured.provenance.patch == "none"
    for row in measured.rows:
        warm = [] if row.starts[0].cached_files == 0 else ["warm"]  # where nothing is cached there is no warm start
        assert [start.cache for start in row.starts] == ["cold", *warm, "scored"]
        assert all(start.start_s > start.first_token_s > 0 for start in row.starts)
        assert all(start.load_average is not None for start in row.starts)
        assert all(rate.load_average is not None for rate in row.rates)
        assert [(rate.depth, rate.concurrency, len(rate.decode_tok_s)) for rate in row.rates] == [
            (0, 1, 2),
            (128, 1, 2),
        ]
        assert all(min(rate.decode_tok_s + rate.prefill_tok_s) > 0 for rate in row.rates)
        assert small.first_answer(finished, row).startswith(" Paris")
        assert row.failures == []


def test_the_commands_in_the_result_are_those_of_the_processes(finished):
    executed = [
        redaction.redact_all(command) for command in json.loads((finished.parent / "commands.json").read_text())
    ]
    baseline, second = result.read(finished / "result.json").rows
    assert all(start.command in executed for start in baseline.starts)
    assert baseline.requested.command == baseline.starts[-2].command, "of the warm start, else of the cold one"
    assert second.starts[0].command in executed, "the cold start of the second was before the kill"


def test_caches_are_wiped_between_the_profiles(finished):
    baseline, second = result.read(finished / "result.json").rows
    assert baseline.wiped.files == 0
    assert second.wiped.files > 0 and not (finished / "cache" / "planted").exists()


@pytest.mark.fp8_cache
def test_fp8_holds_2x_the_tokens_and_answers_the_same(finished):
    baseline, fp8 = result.read(finished / "result.json").rows
    ratio = fp8.resolved.kv_capacity_tokens / baseline.resolved.kv_capacity_tokens
    assert ratio == pytest.approx(2.0, abs=1e-5)
    assert fp8.resolved.cpu_cache_writer and not baseline.resolved.cpu_cache_writer
    assert [match.passed for match in fp8.greedy] == [True, True, True]
    assert fp8.accuracy.passed is True and fp8.accuracy.sinks.status == "passed"
    assert fp8.accuracy.decode.mean_abs_delta.value > 3 * baseline.accuracy.decode.mean_abs_delta.value
    assert f"{fp8.resolved.kv_capacity_tokens:,} (2.00x)" in (finished / "report.md").read_text()


def test_no_path_or_host_of_this_machine_is_in_the_result(finished):
    text = (finished / "result.json").read_text()
    for secret in (str(model.EMBEDDED.parent.parent), sys.prefix, str(finished), os.uname().nodename):
        assert secret not in text


def test_the_report_is_made_and_makes_itself_again(finished):
    report = finished / "report.md"
    assert "small-second" in report.read_text()
    before = report.read_bytes()
    assert write_report(finished) == report and report.read_bytes() == before
