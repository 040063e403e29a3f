"""`fp8-sinks patch`: output and exit codes."""

import json

import pytest
from click.testing import CliRunner

from flashinfer_patches import engine, fetch, package
from flashinfer_patches.errors import EXIT_CODES
from fp8_sinks.cli import main
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    VERSION,
    expected,
    install,
    link,
    package_tree,
)


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_patch_on_the_installed_flashinfer(installed):
    for verb, state, files in [("status", "clean", CLEAN), ("check", "clean", CLEAN), ("apply", "applied", APPLIED)]:
        result = run("patch", verb)
        assert result.exit_code == 0 and result.stdout.startswith(f"{state}: FlashInfer {VERSION} in {installed}")
        assert {path: data for path, data in package_tree(installed).items() if "torch" not in path} == expected(files)
    assert f"patch set {VERSION}+" in result.stdout and result.stderr == ""
    assert run("patch", "revert").stdout.startswith("clean: ")


def test_patch_on_a_target_as_json(site, root, monkeypatch):
    monkeypatch.setattr("flashinfer_patches.series.ROOT", root)
    result = json.loads(run("patch", "apply", "--target", site, "--json").stdout)
    assert result["state"] == "applied" and result["target"] == str(site) and result["files"][DECODE] == "applied"
    assert result["patch_set"] == f"{VERSION}+{result['fingerprint']}"


def test_files_are_named_where_the_state_is_mixed(installed):
    (installed / DECODE).write_bytes(APPLIED[DECODE])
    assert f"applied  {DECODE}" in run("patch", "status").stdout


def test_the_remedy_for_an_edited_installed_package(installed):
    (installed / DECODE).write_bytes(b"mine\n")
    result = run("patch", "apply")
    assert result.exit_code == EXIT_CODES["edited"]
    assert result.stderr.strip().endswith(f"pip install --no-deps --force-reinstall flashinfer-python=={VERSION}")


def test_an_error_prints_message_and_remedy_to_stderr(tmp_path):
    result = run("patch", "apply", "--target", tmp_path, "--json")
    assert result.exit_code == EXIT_CODES["target"] and result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith("Error: ") and second.startswith("  remedy: ")


@pytest.fixture
def copied(root, tmp_path, monkeypatch):
    """The copy of `make patch`, without an installed FlashInfer; returns its folder."""
    monkeypatch.setattr(package, "installed", lambda: None)
    monkeypatch.setattr(fetch, "FOLDER", tmp_path / ".flashinfer")
    monkeypatch.setattr("flashinfer_patches.series.ROOT", root)
    folder = install(tmp_path / ".flashinfer" / VERSION / "patched")
    engine.apply(folder)
    return folder


def test_the_default_without_an_installed_flashinfer_is_the_copy_of_make_patch(copied):
    applied, clean = ("applied", APPLIED), ("clean", CLEAN)
    for verb, (state, files) in [("status", applied), ("revert", clean), ("apply", applied)]:
        result = run("patch", verb)
        assert result.exit_code == 0 and result.stdout.startswith(f"{state}: FlashInfer {VERSION} in {copied}")
        assert "no FlashInfer is installed" in result.stderr and package_tree(copied) == expected(files)
    result = run("patch", "check", "--json")
    assert json.loads(result.stdout)["target"] == str(copied) and "no FlashInfer is installed" in result.stderr


def test_a_target_or_an_installed_flashinfer_precedes_the_copy(copied, installed, tmp_path, monkeypatch):
    assert f"clean: FlashInfer {VERSION} in {installed}" in run("patch", "status", "--target", installed).stdout
    monkeypatch.setattr(package, "installed", lambda: installed)
    result = run("patch", "revert")
    assert f"in {installed}" in result.stdout and result.stderr == "" and package_tree(copied) == expected(APPLIED)


def test_without_any_flashinfer(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "installed", lambda: None)
    monkeypatch.setattr(fetch, "FOLDER", tmp_path / ".flashinfer")
    result = run("patch", "status")
    assert result.exit_code == EXIT_CODES["target"] and "--target" in result.stderr


def test_a_linked_source_that_an_older_version_patched_is_reported(root, tmp_path, monkeypatch):
    monkeypatch.setattr("flashinfer_patches.series.ROOT", root)
    source = install(tmp_path / "source")
    site = link(source, tmp_path / "site")
    engine.apply(source)
    for verb in ("status", "apply"):
        result = run("patch", verb, "--target", site, "--json")
        assert f"fp8-sinks patch revert --target {source}" in result.stderr
        assert json.loads(result.stdout)["patched_source"] == str(source)
    assert run("patch", "revert", "--target", source).exit_code == 0 and package_tree(site) == expected(APPLIED)
