"""The commands as a user or a script calls them."""

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
        done = run("patch", verb)
        assert done.exit_code == 0 and done.stdout.startswith(f"{state}: FlashInfer {VERSION} in {installed}")
        assert {path: data for path, data in package_tree(installed).items() if "torch" not in path} == expected(files)
    assert f"patch set {VERSION}+" in done.stdout and done.stderr == ""
    assert run("patch", "revert").stdout.startswith("clean: ")


def test_patch_on_a_target_as_json(site, root, monkeypatch):
    monkeypatch.setattr("flashinfer_patches.series.ROOT", root)
    done = json.loads(run("patch", "apply", "--target", site, "--json").stdout)
    assert done["state"] == "applied" and done["target"] == str(site) and done["files"][DECODE] == "applied"
    assert done["patch_set"] == f"{VERSION}+{done['fingerprint']}"


def test_files_are_named_where_the_state_is_mixed(installed):
    (installed / DECODE).write_bytes(APPLIED[DECODE])
    assert f"applied  {DECODE}" in run("patch", "status").stdout


def test_the_remedy_for_an_edited_installed_package(installed):
    (installed / DECODE).write_bytes(b"mine\n")
    done = run("patch", "apply")
    assert done.exit_code == EXIT_CODES["edited"]
    assert done.stderr.strip().endswith(f"pip install --no-deps --force-reinstall flashinfer-python=={VERSION}")


def test_an_error_is_one_line_and_its_remedy_on_stderr(tmp_path):
    done = run("patch", "apply", "--target", tmp_path, "--json")
    assert done.exit_code == EXIT_CODES["target"] and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("Error: ") and second.startswith("  remedy: ")


@pytest.fixture
def copied(root, tmp_path, monkeypatch):
    """No FlashInfer is installed, but `make patch` has made its copy; returns the copy's folder."""
    monkeypatch.setattr(package, "installed", lambda: None)
    monkeypatch.setattr(fetch, "FOLDER", tmp_path / ".flashinfer")
    monkeypatch.setattr("flashinfer_patches.series.ROOT", root)
    place = install(tmp_path / ".flashinfer" / VERSION / "patched")
    engine.apply(place)
    return place


def test_without_an_installed_flashinfer_the_copy_of_make_patch_is_meant(copied):
    applied, clean = ("applied", APPLIED), ("clean", CLEAN)
    for verb, (state, files) in [("status", applied), ("revert", clean), ("apply", applied)]:
        done = run("patch", verb)
        assert done.exit_code == 0 and done.stdout.startswith(f"{state}: FlashInfer {VERSION} in {copied}")
        assert "no FlashInfer is installed" in done.stderr and package_tree(copied) == expected(files)
    done = run("patch", "check", "--json")
    assert json.loads(done.stdout)["target"] == str(copied) and "no FlashInfer is installed" in done.stderr


def test_the_copy_is_not_meant_where_another_is(copied, installed, tmp_path, monkeypatch):
    assert f"clean: FlashInfer {VERSION} in {installed}" in run("patch", "status", "--target", installed).stdout
    monkeypatch.setattr(package, "installed", lambda: installed)
    done = run("patch", "revert")
    assert f"in {installed}" in done.stdout and done.stderr == "" and package_tree(copied) == expected(APPLIED)


def test_without_any_flashinfer(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "installed", lambda: None)
    monkeypatch.setattr(fetch, "FOLDER", tmp_path / ".flashinfer")
    done = run("patch", "status")
    assert done.exit_code == EXIT_CODES["target"] and "--target" in done.stderr


def test_a_source_that_an_older_version_patched_is_told(root, tmp_path, monkeypatch):
    monkeypatch.setattr("flashinfer_patches.series.ROOT", root)
    source = install(tmp_path / "source")
    site = link(source, tmp_path / "site")
    engine.apply(source)
    for verb in ("status", "apply"):
        done = run("patch", verb, "--target", site, "--json")
        assert f"fp8-sinks patch revert --target {source}" in done.stderr
        assert json.loads(done.stdout)["patched_source"] == str(source)
    assert run("patch", "revert", "--target", source).exit_code == 0 and package_tree(site) == expected(APPLIED)
