"""Provenance of a result: versions, commit, inherited environment."""

import json
import subprocess
from pathlib import Path

import pytest

from vllm_launch import plan, profile, provenance
from vllm_launch.machine import detect


@pytest.fixture
def planned(monkeypatch, tmp_path):
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    monkeypatch.setattr(plan, "detect", lambda _device: detect("cpu"))
    return plan.make(profile.load("baseline"), port=1, cache_root=tmp_path)


def test_the_inherited_environment_is_an_allow_list(monkeypatch, planned):
    variables = {"OMP_NUM_THREADS": "3", "NCCL_DEBUG": "INFO", "VLLM_CPU_KVCACHE_SPACE": "7", "MINE": "x"}
    variables |= {"HF_TOKEN": "s3same", "VLLM_API_KEY": "s3same", "HF_HOME": str(Path.home() / "hf")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    inherited = provenance.inherited(planned)
    assert (inherited["OMP_NUM_THREADS"], inherited["NCCL_DEBUG"], inherited["HF_HOME"]) == ("3", "INFO", "~/hf")
    assert not {"HF_TOKEN", "VLLM_API_KEY", "MINE", "VLLM_CPU_KVCACHE_SPACE"} & set(inherited)
    assert provenance.inherited(None)["VLLM_CPU_KVCACHE_SPACE"] == "7"


@pytest.mark.parametrize(("status", "dirty"), [(None, None), ("", False), (" M file", True)])
def test_a_git_status_that_fails_is_unknown(monkeypatch, status, dirty):
    monkeypatch.setattr(provenance, "_git", lambda verb, *_: status if verb == "status" else "0123abc")
    record = provenance.collect(detect("cpu"), [])
    assert (record.git_commit, record.git_dirty) == ("0123abc", dirty)


def test_provenance_has_versions_and_commit():
    record = provenance.collect(detect("cpu"), ["fp8-sinks", "bench", str(provenance.REPO)])
    assert {"python", "fp8-sinks"} <= set(record.versions)
    assert record.patch == "none"
    assert record.command[-1] == "$REPO"
    assert json.loads(record.model_dump_json())["created"].endswith("Z")


def test_the_state_of_the_code_is_that_of_its_own_repository(monkeypatch, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "code.py").write_text("first")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "REPO", tmp_path)
    states = [provenance.code_state()]
    for text in ("second", "third"):
        (inner / "code.py").write_text(text)
        states.append(provenance.code_state())
    assert len(set(states)) == 3 and len(states[0]) == 40 and all(state.startswith(states[0]) for state in states)
    monkeypatch.setattr(provenance, "REPO", inner)
    source = provenance.collect(detect("cpu"), [])
    assert (source.git_commit, source.git_dirty, provenance.code_state()) == (None, None, "unknown")
