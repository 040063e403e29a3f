"""Result files: whole or not at all, checked when read, and free of this machine's names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kinds
from bench.record import files
from bench.record.run_folder import Request
from bench.record.steps import load
from bench.servers.starts import requested
from flashinfer_patches.errors import Problem
from kernels_tests.bench.engine.samples import an_engine_result
from kernels_tests.bench.kernels.samples import a_kernels_result
from kernels_tests.bench.rollout.samples import a_rollout_result
from kernels_tests.bench.samples import a_result, two_profiles
from kernels_tests.bench.static_cache.samples import a_static_cache_result
from vllm_launch import plan, profile
from vllm_launch.machine import detect
from vllm_launch.redaction import REPO

NAMES = ("serving", "accuracy", "kernels", "engine", "rollout", "static-cache")


def test_the_module_prints_the_schema_of_every_kind():
    printed = subprocess.run([sys.executable, "-m", "bench.kinds"], capture_output=True, text=True, check=True).stdout
    schema = json.loads(printed)
    assert schema == json.loads(json.dumps(kinds.RESULT.json_schema()))
    assert set(schema["discriminator"]["mapping"]) == set(kinds.KINDS) == {*NAMES}


@pytest.mark.parametrize(
    "result",
    [two_profiles(), a_kernels_result(), an_engine_result(), a_static_cache_result(), a_rollout_result()],
    ids=lambda result: result.kind,
)
def test_a_result_of_each_kind_is_read_back_and_has_a_section(tmp_path, result):
    files.write(result, tmp_path / "result.json")
    assert kinds.read(tmp_path) == kinds.read(tmp_path / "result.json") == result
    (section,) = kinds.sections([tmp_path])
    assert section.id == result.id and section.page and section.details


def test_sections_come_by_kind_and_the_newest_first(tmp_path):
    results = [a_kernels_result(), two_profiles(), a_result(*two_profiles().rows, identity="newer", day=3)]
    for result in results:
        files.write(result, tmp_path / f"{result.id}.json")
    order = [section.id for section in kinds.sections(sorted(tmp_path.iterdir()))]
    assert order == ["newer", two_profiles().id, a_kernels_result().id]


@pytest.mark.parametrize("path", sorted((REPO / "results").glob("*.json")), ids=lambda path: path.name)
def test_every_kept_result_is_read(path):
    content = json.loads(path.read_text())
    result = kinds.read(path)
    assert (result.kind, result.id) == (content["kind"], content["id"]) and len(result.rows) == len(content["rows"])


def test_retired_fields_are_dropped_from_old_results_of_their_kind_alone(tmp_path):
    old = json.loads(a_kernels_result().model_dump_json())
    (tmp_path / "result.json").write_text(json.dumps(old | {"tolerance": [{"rtol": 0.01}]}))
    assert kinds.read(tmp_path) == a_kernels_result()
    (tmp_path / "result.json").write_text(json.dumps(old | {"unknown": []}))
    with pytest.raises(Problem, match="unknown"):
        kinds.read(tmp_path)
    serving = json.loads(two_profiles().model_dump_json())
    (tmp_path / "result.json").write_text(json.dumps(serving | {"tolerance": []}))
    with pytest.raises(Problem, match="tolerance"):
        kinds.read(tmp_path)
    for row in serving["rows"]:
        row["completion"] = " Paris"
    (tmp_path / "result.json").write_text(json.dumps(serving))
    assert kinds.read(tmp_path) == two_profiles()


def test_a_result_of_a_later_schema_is_refused(tmp_path):
    later = json.loads(two_profiles().model_dump_json()) | {"schema_version": 2}
    (tmp_path / "result.json").write_text(json.dumps(later))
    with pytest.raises(Problem, match="schema_version"):
        kinds.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"schema_version": 1, "kind": "serving", "id": "x", "prov',
        "[]",
        '{"kind": "x"}',
        '{"kind": []}',
        "\xff",
        "[" * 200_000,
    ],
)
def test_a_half_written_or_foreign_result_is_a_clear_error(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(Problem) as caught:
        kinds.read(path)
    assert caught.value.exit_code == 2 and str(path) in caught.value.message and "\n" not in caught.value.message


def test_a_missing_result(tmp_path):
    with pytest.raises(Problem, match="cannot read"):
        kinds.read(tmp_path / "none.json")


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
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        files.write_text("new", path)
    assert path.read_text() == "old"


def test_a_plan_is_recorded_without_secrets_and_folders(planned):
    arguments = {"chat-template": str(Path.home() / "t"), "hf-overrides": {"auth_token": "s3same"}}
    planned = planned.model_copy(
        update={
            "environment": planned.environment | {"MY_TOKEN": "s3same"},
            "arguments": planned.arguments | arguments,
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


def test_results_from_before_starts_had_commands_are_still_read(tmp_path):
    old = json.loads(two_profiles().model_dump_json())
    for row in old["rows"]:
        for start in row["starts"]:
            del start["command"], start["load_average"]
    (tmp_path / "result.json").write_text(json.dumps(old))
    assert [start.command for start in kinds.read(tmp_path).rows[0].starts] == [[], []]
