"""A serving run with real servers and real llama-benchy, on a small grid: killed, resumed, gated, reported."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from safetensors.torch import load_file, save_file

from bench import kinds as result
from bench import suite
from bench.accuracy import greedy
from bench.accuracy.greedy import Answer
from bench.record.steps import load
from kernels_tests.processes import completed, free_port, spawn, wait_for, watched
from vllm_launch import model, plan, profile, redaction, server

pytestmark = pytest.mark.server
RUN_S = 400
SUITE = """
extends: tiny_gpt_oss
greedy: {reference: small-baseline.yaml}
grid: {prompt: [256], output: [64], depth: [0, 128], concurrency: [1], runs: 2}
texts: {contexts: [{context: 128, texts: 16, tokens: 64}]}
"""


def supervised(processes):
    """The commands of the supervisors among some processes, as the system tells them."""
    for process in processes:
        with suppress(psutil.Error):
            words = process.cmdline()
            if "vllm_launch.supervisor" in words:
                yield tuple(words[words.index("--") + 1 :])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fp8_cache):
    """A run of two profiles whose launcher was killed halfway and which was then resumed.

    The second one has an FP8 cache where there can be one, else it is the first once more.
    """
    folder = tmp_path_factory.mktemp("serving")
    profiles = [folder / "small-baseline.yaml", folder / "small-second.yaml"]
    for path, base in zip(profiles, ("baseline", "fp8" if fp8_cache else "baseline"), strict=True):
        path.write_text(f"extends: {base}\n")
    small = folder / "small.yaml"
    small.write_text(SUITE)
    run = folder / "run"
    bench = [sys.executable, "-m", "fp8_sinks", "bench", "serving"]
    commands = set()
    with watched() as live:

        def halfway():
            time.sleep(1)
            commands.update(supervised(live()))
            if (run / "small-baseline" / "cold.json").exists() and not (run / "small-second").exists():
                (run / "cache" / "planted").write_text("on a CPU vLLM itself may cache nothing")
            return (run / "small-second" / "scored.json").exists() or killed.poll() is not None

        killed = spawn(
            [*bench, *map(str, profiles), "--suite", str(small), "--run-dir", str(run)], stderr=subprocess.DEVNULL
        )
        wait_for(halfway, RUN_S)
        assert killed.poll() is None, "it ended before it could be killed"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        wait_for(lambda: not live(), 60)
    (folder / "commands.json").write_text(json.dumps(sorted(commands)))
    before = {path: path.read_bytes() for path in (run / "small-baseline").glob("*.json*")}
    assert {"cold.json", "scored.json", "sinks.json", "rates-128.json"} <= {path.name for path in before}
    assert not (run / "result.json").exists()
    resumed = completed([*bench, "--resume", str(run)], RUN_S)
    assert resumed.returncode == 0, resumed.stderr
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == [], "a finished step was measured again"
    return run


def test_the_result_is_complete(finished):
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
        assert row.completion.startswith(" Paris")
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
def test_fp8_has_double_capacity_and_the_same_answers(finished):
    baseline, fp8 = result.read(finished / "result.json").rows
    ratio = fp8.resolved.kv_capacity_tokens / baseline.resolved.kv_capacity_tokens
    assert ratio == pytest.approx(2.0, abs=1e-5)
    assert fp8.resolved.cpu_cache_writer and not baseline.resolved.cpu_cache_writer
    assert [match.passed for match in fp8.greedy] == [True, True, True]
    assert fp8.accuracy.passed is True and fp8.accuracy.sinks.status == "passed"
    assert fp8.accuracy.decode.mean_abs_delta.value > 3 * baseline.accuracy.decode.mean_abs_delta.value
    assert "holds 2.00x the tokens" in (finished / "report.md").read_text()


def test_no_path_or_host_of_this_machine_is_in_the_result(finished):
    text = (finished / "result.json").read_text()
    for secret in (str(model.EMBEDDED.parent.parent), sys.prefix, str(finished), os.uname().nodename):
        assert secret not in text


def test_the_report_is_made_and_makes_itself_again(finished):
    report = finished / "report.md"
    assert "small-second" in report.read_text()
    first = report.read_bytes()
    command = [sys.executable, "-m", "fp8_sinks", "bench", "report", str(finished / "result.json")]
    subprocess.run([*command, "--out", str(finished), "--name", "report.md"], check=True, capture_output=True)
    assert report.read_bytes() == first


def test_a_failed_request_leaves_the_measured_rates(finished, tmp_path):
    """A step that llama-benchy cannot do (longer than the model's context): exit 1, all earlier steps in the result."""
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished), str(run)], check=True)
    request = json.loads((run / "request.json").read_text())
    too_deep = tmp_path / "too-deep.yaml"
    too_deep.write_text(f"extends: {request['suite']}\ngrid: {{depth: [0, 99999]}}\n")
    (run / "request.json").write_text(json.dumps(request | {"suite": str(too_deep)}))
    command = [sys.executable, "-m", "fp8_sinks", "bench", "serving", "--resume", str(run)]
    process = completed(command, RUN_S)
    assert process.returncode == 1, process.stderr
    assert "remedy:" in process.stderr and "--resume" in process.stderr
    baseline, second = result.read(run / "result.json").rows
    assert [rate.depth for rate in baseline.rates] == [rate.depth for rate in second.rates] == [0]
    assert second.greedy and "depth 99999" in baseline.failures[0].message
    assert baseline.failures[0].step == "rates at depth 99999"


def test_zeroed_sinks_fail_the_gate(finished, tmp_path):
    folder = tmp_path / model.EMBEDDED.name
    folder.mkdir()
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((model.EMBEDDED / file).read_bytes())
    tensors = load_file(model.EMBEDDED / "model.safetensors")
    zeroed = {name: tensor * 0 for name, tensor in tensors.items() if name.endswith(".sinks")}
    assert zeroed
    save_file(tensors | zeroed, folder / "model.safetensors", {"format": "pt"})

    planned = plan.make(
        profile.load("baseline"), port=free_port(), cache_root=finished / "cache", model_path=str(folder)
    )
    references = load(finished / "small-baseline" / "greedy.json", list[Answer])
    with server.running(planned, tmp_path, say=lambda line: None) as running:
        answers = [greedy.answer(running, expected.prompt, len(expected.token_ids)) for expected in references]
    gate, pairs = suite.load(None, "tiny_gpt_oss").greedy, zip(answers, references, strict=True)
    assert not any(greedy.match(reply, expected, "baseline", gate).passed for reply, expected in pairs)
