"""The commands as a user or a script calls them."""

import json
import re

import pytest
from click.testing import CliRunner

from flashinfer_patches import jit_cache, locking
from flashinfer_patches.errors import EXIT_CODES
from fp8_sinks.cli import main
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    VERSION,
    expected,
    package_tree,
    write,
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


def test_cache_commands(installed, tmp_path):
    place = run("cache", "path", "--root", tmp_path / "caches").stdout.strip()
    assert json.loads(run("cache", "path", "--root", tmp_path / "caches", "--json").stdout) == {"path": place}
    assert run("cache", "list", "--root", tmp_path / "caches").stdout == ""
    jit_cache.built_once(tmp_path / "caches" / "b", "m", lambda: None)
    write(tmp_path / "caches" / "theirs", {"file": b"x"})
    assert f"{tmp_path}/caches/b  0.0 MiB  1 built" in run("cache", "list", "--root", tmp_path / "caches").stdout
    (listed,) = json.loads(run("cache", "list", "--root", tmp_path / "caches", "--json").stdout)
    assert listed["path"] == f"{tmp_path}/caches/b" and listed["built"] == ["m"]
    done = run("cache", "wipe", "--root", tmp_path / "caches")
    assert done.exit_code == 0 and f"{tmp_path}/caches/b" in done.stdout
    assert "not caches of ours: theirs" in done.stderr
    assert [path.name for path in (tmp_path / "caches").iterdir()] == ["theirs"]
    assert json.loads(run("cache", "wipe", "--root", tmp_path / "caches", "--json").stdout) == {}


def test_what_was_wiped_before_a_locked_cache_is_said(tmp_path):
    first, second = (jit_cache.make(tmp_path / name) for name in "ab")
    with locking.held(tmp_path / ".b.lock", "builds m", 0):
        done = run("cache", "wipe", "--root", tmp_path)
    assert done.exit_code == EXIT_CODES["lock"] and "builds m" in done.stderr
    assert done.stdout == f"{first}  0.0 MiB freed\n" and not first.exists() and second.exists()


@pytest.mark.parametrize(
    ("group", "others"), [("patch", {"cache", "fetch", "build"}), ("cache", {"version", "superseded", "git", "fetch"})]
)
def test_help_names_the_exit_codes_of_its_commands(group, others):
    told = {int(word) for word in re.findall(r"\b\d\d\b", run(group, "--help").stdout)}
    assert told == {code for kind, code in EXIT_CODES.items() if kind not in others}
    assert all(f"{code} {kind}" in " ".join(run("--help").stdout.split()) for kind, code in EXIT_CODES.items())
