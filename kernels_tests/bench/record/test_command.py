"""Executing a run: which result is reported, and how to go on."""

import pytest

from bench.record.command import run_in_folder
from bench.record.run_folder import Request

REQUEST = Request(kind="serving", profiles=["fp8"], model=None, overrides=[])


def run(folder, execute):
    """Execute a run; the folders that reports were written for."""
    reported = []

    def write_report(run_folder):
        reported.append(run_folder)
        return run_folder / "report.md"

    try:
        run_in_folder(folder, REQUEST, execute, write_report)
    finally:
        run.reported = reported
    return reported


def fail(*_):
    raise RuntimeError("the disk is gone")


def test_a_result_that_this_execution_did_not_write_is_not_reported(tmp_path, capsys):
    def write(*_):
        (tmp_path / "result.json").write_text("{}")
        return REQUEST

    assert run(tmp_path, write) == [tmp_path]
    with pytest.raises(RuntimeError):
        run(tmp_path, fail)
    assert run.reported == [] and f"--resume {tmp_path}" in capsys.readouterr().err


def test_a_result_that_is_written_before_an_error_is_reported(tmp_path):
    def write_and_fail(*_):
        (tmp_path / "result.json").write_text("{}")
        fail()

    with pytest.raises(RuntimeError):
        run(tmp_path, write_and_fail)
    assert run.reported == [tmp_path]
