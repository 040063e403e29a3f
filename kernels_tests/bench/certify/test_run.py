"""A run of `fp8-sinks certify`: certificate, table and exit code on a pretended GPU, and the refusals without one."""

import json

import pytest
from click.testing import CliRunner

from bench.certify import run
from bench.certify.budget import OutOfTime
from bench.certify.correctness import Kernels
from bench.certify.speed import Speed
from flashinfer_patches.errors import ENVIRONMENT, EXIT_CODES, GATE
from fp8_sinks.cli import main
from kernels_tests.bench.certify.conftest import a_timing
from kernels_tests.conftest import detect
from kernels_tests.vllm_launch.certificates import KEY, sample
from lowp.sink_decode import sink_decode
from vllm_launch import certificate
from vllm_launch.certificate import CHECKS, Check


def certify(*words):
    return CliRunner().invoke(main, ["certify", *words])


@pytest.fixture
def accepted(pretended, monkeypatch, tmp_path):
    """A pretended GPU that the command accepts, in an empty working directory."""
    monkeypatch.setattr(run, "problem", lambda: None)
    monkeypatch.chdir(tmp_path)
    return pretended


def test_a_certified_gpu(accepted):
    result = certify()
    assert result.exit_code == 0, result.output
    status = certificate.read()
    assert (status.state, certificate.decoder(), accepted.served) == ("valid", "lowp", ["lowp", "ended"])
    assert {check.name: check.verdict for check in status.certificate.checks} == dict.fromkeys(CHECKS, "passed")
    rows = [line.split()[:2] for line in result.stdout.splitlines() if line.startswith("passed")]
    assert rows == [["passed", name] for name in CHECKS]
    assert str(status.path) in result.stdout
    assert all(f"{name}: passed" in result.stderr for name in CHECKS)


def test_json(accepted):
    result = certify("--json")
    assert certificate.Certificate.model_validate_json(result.stdout) == certificate.read().certificate


def test_a_wrong_kernel_fails(accepted):
    def wrong(**arguments):
        sink_decode(**arguments)
        arguments["out"].mul_(1.02)

    accepted.kernels = Kernels(decode=wrong)
    result = certify()
    assert result.exit_code == GATE
    status = certificate.read()
    assert (status.state, certificate.decoder(), status.certificate.decoder) == ("failed", None, "stock")
    failed = [check for check in status.certificate.checks if check.verdict == "failed"]
    assert [check.name for check in failed] == ["decode"] and failed[0].problems
    assert failed[0].problems[0] in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", ["graph", "gate"])
def test_another_failed_check_fails(accepted, name):
    setattr(accepted, name, lambda: Check(name=name, verdict="failed", detail="wrong"))
    assert certify().exit_code == GATE and certificate.read().state == "failed"


def test_without_vllm_for_cuda_the_gate_does_not_run(accepted):
    accepted.obstacle = "vLLM: none installed"
    result = certify("--json")
    assert result.exit_code == ENVIRONMENT and accepted.served == []
    written = certificate.read()
    assert (written.state, written.certificate.check("gate").verdict) == ("incomplete", "not run")
    assert written.certificate.check("decode").verdict == "passed" and written.certificate.decoder == "stock"


def test_checks_beyond_the_time_are_not_run(accepted):
    def late():
        raise OutOfTime("not finished in 1 s")

    accepted.graph = late
    assert certify("--seconds", "60").exit_code == ENVIRONMENT
    verdicts = {check.name: check.verdict for check in certificate.read().certificate.checks}
    assert verdicts == dict.fromkeys(CHECKS, "passed") | {"graph": "not run", "gate": "not run"}
    assert accepted.served == ["lowp", "ended"]


def test_the_gate_is_that_of_the_winner(accepted):
    measured = accepted.speed()
    fast = [a_timing("flashinfer", timing.shape, 1.0) for timing in measured.timings]
    accepted.speed = lambda: Speed(measured.check, measured.read_ceiling, [*measured.timings, *fast])
    assert certify().exit_code == 0
    assert (certificate.decoder(), accepted.served) == ("flashinfer", ["flashinfer", "ended"])


def test_a_slow_decoder_is_checked_and_not_taken(accepted):
    accepted.speed = lambda: Speed(Check(name="speed", verdict="passed", detail="10%"), 4.4e12, [])
    assert certify().exit_code == 0
    assert (certificate.read().state, certificate.decoder(), accepted.served) == ("valid", "stock", ["lowp", "ended"])


def test_a_failed_run_replaces_a_valid_certificate(accepted):
    certificate.save(sample())
    accepted.gate = lambda: Check(name="gate", verdict="failed", detail="wrong")
    certify()
    assert certificate.decoder() is None


def test_dry_run_starts_nothing_and_writes_nothing(accepted, tmp_path):
    accepted.obstacle = "vLLM: none installed"
    result = certify("--dry-run")
    assert result.exit_code == 0 and accepted.served == [] and list(tmp_path.iterdir()) == []
    assert str(certificate.path_of(KEY)) in result.stdout and "vLLM: none installed" in result.stdout


def test_a_file_that_is_not_ours_is_refused_before_anything_runs(pretended, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("lowp.jit.driver.bindings", lambda name: None)
    assert run.problem() is None
    path = certificate.path_of(KEY)
    path.parent.mkdir(parents=True)
    path.write_text("notes")
    result = certify()
    assert result.exit_code == EXIT_CODES["file"] and pretended.served == [] and path.read_text() == "notes"


def test_a_gpu_that_is_too_old_is_refused(pretended, monkeypatch):
    monkeypatch.setattr("vllm_launch.machine.capability_and_cuda", lambda: ("7.5", (13, 0)))
    assert run.problem().kind == "software" and certify().exit_code == ENVIRONMENT


def test_missing_nvrtc_is_refused(pretended, monkeypatch):
    def missing(name):
        raise RuntimeError("no NVRTC")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("lowp.jit.driver.bindings", missing)
    assert run.problem().kind == "software"


@pytest.mark.skipif(detect("gpu") is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("words", [(), ("--json",), ("--dry-run",)])
def test_a_single_problem_without_a_gpu(words, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    result = certify(*words)
    assert result.exit_code == ENVIRONMENT and result.stdout == "" and list(tmp_path.iterdir()) == []
    assert result.stderr.count("Error: ") == result.stderr.count("remedy: ") == 1


def test_the_certificate_file_is_json_for_other_tools(accepted):
    certify()
    content = json.loads(certificate.read().path.read_text())
    assert content["certificate"]["decoder"] == "lowp" and len(content["digest"]) == 64
