"""Result files: whole or not at all, checked when read, and free of this machine's names."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench import kinds as result
from bench.record import files, schema
from bench.record.run_folder import Request
from bench.record.steps import load
from bench.servers.starts import requested
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import two_profiles
from vllm_launch import plan, profile, provenance
from vllm_launch.machine import detect


def test_the_published_schema_is_current():
    assert schema.PATH.read_text() == schema.text(), "run: make schema"


@pytest.mark.parametrize(
    "text", ["", '{"schema_version": 1, "kind": "serving", "id": "x", "prov', "[]", '{"kind": "x"}']
)
def test_a_half_written_or_foreign_result_is_one_clear_error(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(Problem) as caught:
        result.read(path)
    assert caught.value.exit_code == 2 and str(path) in caught.value.message and "\n" not in caught.value.message


def test_a_missing_result(tmp_path):
    with pytest.raises(Problem, match="cannot read"):
        result.read(tmp_path / "none.json")


def test_a_half_written_step_names_the_file_to_delete(tmp_path):
    path = tmp_path / "run" / "fp8" / "warm.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"profiles": [')
    with pytest.raises(Problem) as caught:
        load(path, Request)
    assert str(path) in caught.value.message and "--resume" in caught.value.remedy


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_text("old", path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        files.write_text("new", path)
    assert path.read_text() == "old"


def test_redaction_names_no_folder_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(provenance.REPO / ".venv"))
    places = {
        f"{provenance.REPO}/models/x": "$REPO/models/x",
        f"{provenance.REPO}/.venv/bin/python": "$ENV/bin/python",
        f"{Path.home()}/m": "~/m",
        f"{tempfile.gettempdir()}/run": "$TMP/run",
        f"cannot write {Path.home()}.": "cannot write ~.",
        f"{Path.home()}other/m": f"{Path.home()}other/m",
    }
    assert provenance.redact_all({"a": list(places)}) == {"a": list(places.values())}


def test_what_a_secrets_name_stands_before_is_masked():
    command = ["--api-key", "s3same", "--hf-token=s3same", "--max-num-batched-tokens", "8192", "A_KEY=s3same"]
    command += [
        "--hf-overrides",
        '{"num_key_value_heads":2,"token":"s3same"}',
        "--tokenizer",
        "t",
        "--password",
        "s3same",
    ]
    masked = provenance.redact_all(command)
    assert "s3same" not in " ".join(masked) and len(masked) == len(command)
    assert masked[3:5] == command[3:5] and masked[8:10] == command[8:10] and '"num_key_value_heads":2' in masked[7]
    settings = {"MY_TOKEN": "s3same", "nested": {"secret": "s3same", "words": ["--api-key", "s3same"]}, "size": 3}
    assert "s3same" not in str(provenance.redact_all(settings)) and provenance.redact_all(settings)["size"] == 3


def test_a_plan_is_recorded_without_secrets_and_folders(planned):
    given = {"chat-template": str(Path.home() / "t"), "hf-overrides": {"auth_token": "s3same"}}
    planned = planned.model_copy(
        update={
            "environment": planned.environment | {"MY_TOKEN": "s3same"},
            "arguments": planned.arguments | given,
            "command": [*planned.command, "--api-key", "s3same"],
        }
    )
    text = requested(planned).model_dump_json()
    assert "s3same" not in text and str(Path.home() / "t") not in text and "~/t" in text


@pytest.fixture
def planned(monkeypatch, tmp_path):
    monkeypatch.setattr(plan.software, "vllm_build", lambda: ("cpu", "0.32.0"))
    monkeypatch.setattr(plan, "detect", lambda _device: detect("cpu"))
    return plan.make(profile.load("baseline"), port=1, cache_root=tmp_path)


def test_the_inherited_environment_is_an_allow_list(monkeypatch, planned):
    given = {"OMP_NUM_THREADS": "3", "NCCL_DEBUG": "INFO", "HF_TOKEN": "s3same", "VLLM_API_KEY": "s3same", "MINE": "x"}
    given |= {"VLLM_CPU_KVCACHE_SPACE": "7", "HF_HOME": str(Path.home() / "hf")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    got = provenance.inherited(planned)
    assert (got["OMP_NUM_THREADS"], got["NCCL_DEBUG"], got["HF_HOME"]) == ("3", "INFO", "~/hf")
    assert not {"HF_TOKEN", "VLLM_API_KEY", "MINE", "VLLM_CPU_KVCACHE_SPACE"} & set(got)
    assert provenance.inherited(None)["VLLM_CPU_KVCACHE_SPACE"] == "7"


@pytest.mark.parametrize(("status", "dirty"), [(None, None), ("", False), (" M file", True)])
def test_a_status_that_git_cannot_tell_is_unknown(monkeypatch, status, dirty):
    monkeypatch.setattr(provenance, "_git", lambda verb, *_: status if verb == "status" else "0123abc")
    record = provenance.collect(detect("cpu"), [])
    assert (record.git_commit, record.git_dirty) == ("0123abc", dirty)


def test_results_from_before_starts_had_commands_are_still_read():
    old = json.loads(two_profiles().model_dump_json())
    for row in old["rows"]:
        for start in row["starts"]:
            del start["command"], start["load_average"]
    assert [start.command for start in result.RESULT.validate_python(old).rows[0].starts] == [[], []]


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
    assert len(set(states)) == 3 and len(states[0]) == 40 and all(one.startswith(states[0]) for one in states)
    monkeypatch.setattr(provenance, "REPO", inner)
    source = provenance.collect(detect("cpu"), [])
    assert (source.git_commit, source.git_dirty, provenance.code_state()) == (None, None, "unknown")
