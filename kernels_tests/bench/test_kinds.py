"""Result files: whole or not at all, checked when read, and free of this machine's names."""

import json
from pathlib import Path

import pytest

from bench import kinds as result
from bench.record import files, schema
from bench.record.run_folder import Request
from bench.record.steps import load
from bench.servers.starts import requested
from flashinfer_patches.errors import Problem
from kernels_tests.bench.samples import two_profiles
from vllm_launch import plan, profile
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


def test_results_from_before_starts_had_commands_are_still_read():
    old = json.loads(two_profiles().model_dump_json())
    for row in old["rows"]:
        for start in row["starts"]:
            del start["command"], start["load_average"]
    assert [start.command for start in result.RESULT.validate_python(old).rows[0].starts] == [[], []]
