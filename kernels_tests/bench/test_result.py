"""Result files: whole or not at all, checked when read, and free of this machine's names."""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from bench import provenance, result, schema
from bench.run import Request, load
from vllm_launch.errors import Problem


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
    assert caught.value.exit_code == 32 and str(path) in caught.value.message and "\n" not in caught.value.message


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
    result.write_text("old", path)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        result.write_text("new", path)
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


def test_provenance_has_versions_and_commit(monkeypatch):
    from vllm_launch.machine import detect

    record = provenance.collect(detect("cpu"), ["fp8-sinks", "bench", str(provenance.REPO)])
    assert {"python", "fp8-sinks"} <= set(record.versions)
    assert record.patch == "none"
    assert record.command[-1] == "$REPO"
    assert json.loads(record.model_dump_json())["created"].endswith("Z")
