"""Apply, check and revert on a small package, with the real git."""

import os
import py_compile
import shutil
import subprocess
import sys

import pytest

from flashinfer_patches import engine, package, series
from flashinfer_patches.state import LOCK, STORE
from kernels_tests.flashinfer_patches.engine.refusal import refused
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    HEADER,
    SINKS,
    STEP,
    VERSION,
    expected,
    install,
    package_tree,
    tree,
    write,
    write_series,
)


def test_apply_check_and_revert(site, root):
    assert engine.status(site, root).state == engine.check(site, root).state == "clean"
    assert tree(site) == expected(CLEAN), "status and check change nothing"
    applied = engine.apply(site, root)
    patch_set = series.read(VERSION, root).manifest.patch_set
    assert applied.state == "applied" and applied.patch_set == patch_set == f"{VERSION}+{applied.fingerprint}"
    assert package_tree(site) == expected(APPLIED)
    assert engine.check(site, root) == engine.status(site, root) == applied
    reverted = engine.revert(site, root)
    assert reverted.state == "clean" and reverted.patch_set is None
    assert tree(site) == expected(CLEAN), "originals, created files and their folders are gone"


def test_a_second_apply_and_a_second_revert_touch_nothing(site, root):
    for action in (engine.apply, engine.revert):
        first = action(site, root)
        before = {(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in [site, *site.rglob("*")]}
        assert action(site, root) == first
        assert {(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in [site, *site.rglob("*")]} == before


def test_a_series_whose_last_patch_is_broken_changes_nothing(site, root):
    last = root / VERSION / "step-2.patch"
    last.write_bytes(last.read_bytes().replace(b"line_29 = 29", b"line_29 = 'upstream moved'"))
    for action in (engine.check, engine.apply):
        error = refused("series", action, site, root)
        assert "step-2.patch" in error.message and "decode.py" in error.message
        assert tree(site) == expected(CLEAN)


def test_a_series_that_contradicts_its_manifest_changes_nothing(site, root):
    last = root / VERSION / "step-2.patch"
    last.write_bytes(last.read_bytes().replace(b"'more'", b"'evil'"))
    assert DECODE in refused("series", engine.apply, site, root).message
    assert tree(site) == expected(CLEAN)


def test_a_patch_that_creates_a_file_missing_in_its_manifest(site, root):
    extra = b"diff --git a/flashinfer/extra.py b/flashinfer/extra.py\nnew file mode 100644\n"
    extra += b"--- /dev/null\n+++ b/flashinfer/extra.py\n@@ -0,0 +1 @@\n+x = 1\n"
    last = root / VERSION / "step-2.patch"
    last.write_bytes(
        last.read_bytes() + b"diff --git a/flashinfer/extra.py b/flashinfer/extra.py\nnew file mode 100644\n" + extra
    )
    assert "flashinfer/extra.py" in refused("series", engine.apply, site, root).message
    assert tree(site) == expected(CLEAN)


@pytest.mark.parametrize("location", ["target", "temporary folder"])
def test_inside_a_git_repository(site, root, tmp_path, location, monkeypatch):
    """Inside a repository `git apply` skips files outside of its current folder, and exits with 0."""
    repository = site if location == "target" else tmp_path / "tmp"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repository))
    engine.apply(site, root)
    assert {path: data for path, data in package_tree(site).items()} == expected(APPLIED)
    engine.revert(site, root)
    assert package_tree(site) == expected(CLEAN)


def test_git_settings_of_the_user_do_not_matter(site, root, tmp_path, monkeypatch):
    (tmp_path / ".gitconfig").write_text("[core]\n autocrlf = true\n[apply]\n whitespace = fix\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    engine.apply(site, root)
    assert package_tree(site) == expected(APPLIED), "the header keeps its CRLF"


def test_hard_linked_files_are_unchanged_elsewhere(site, root, tmp_path):
    """As uv installs: every file is a hard link into a cache that other environments share."""
    cache = tmp_path / "cache"
    shutil.copytree(site, cache, copy_function=os.link)
    inodes = {path: (cache / path).stat().st_ino for path in CLEAN}
    engine.apply(site, root)
    assert tree(cache) == expected(CLEAN)
    assert {path for path in CLEAN if (site / path).stat().st_ino != inodes[path]} == {DECODE, HEADER}
    shutil.copytree(site, tmp_path / "patched", copy_function=os.link)
    engine.revert(site, root)
    assert package_tree(tmp_path / "patched") == expected(APPLIED), "revert does not write in place either"


def test_targets_of_symbolic_links_are_unchanged(site, root, tmp_path):
    cache = tmp_path / "cache.py"
    (site / DECODE).rename(cache)
    (site / DECODE).symlink_to(cache)
    engine.apply(site, root)
    assert cache.read_bytes() == CLEAN[DECODE] and package_tree(site) == expected(APPLIED)


@pytest.mark.parametrize("damage", ["one byte", "CRLF", "missing", "edited after apply"])
def test_an_edited_file_is_refused_and_unchanged(site, root, damage):
    if damage == "edited after apply":
        engine.apply(site, root)
    data = (site / DECODE).read_bytes()
    (site / DECODE).unlink()
    if damage != "missing":
        (site / DECODE).write_bytes(data.replace(b"\n", b"\r\n") if damage == "CRLF" else data + b"#")
    before = tree(site)
    assert engine.status(site, root).state == "edited"
    assert engine.status(site, root).files[DECODE] == "edited"
    for action in (engine.check, engine.apply, engine.revert):
        error = refused("edited", action, site, root)
        assert DECODE in error.message and "expected" in error.message
        assert error.remedy.endswith(f"pip install --no-deps --upgrade --target {site} flashinfer-python=={VERSION}")
    assert tree(site) == before


def test_a_file_at_the_path_of_a_created_file_is_refused(site, root):
    write(site, {SINKS: b"mine\n"})
    assert SINKS in refused("edited", engine.apply, site, root).message
    assert (site / SINKS).read_bytes() == b"mine\n"


def test_a_release_without_a_series(site, root):
    install(site, version="0.8.0")
    assert engine.status(site, root).state == "unknown version"
    for action in (engine.check, engine.apply, engine.revert):
        error = refused("version", action, site, root)
        assert "0.8.0" in error.message and VERSION in error.message
    assert tree(site) == expected(CLEAN, "0.8.0")


def test_a_source_tree_has_no_known_release(site, root):
    (site / "flashinfer/_build_meta.py").unlink()
    assert engine.status(site, root).version == "unknown"
    refused("version", engine.apply, site, root)


@pytest.mark.parametrize("version", ["0.8.0", VERSION])
def test_a_release_that_has_the_changes_already(site, root, version):
    """Upstream has every change of the series, and more: its bytes differ from both hashes."""
    later = APPLIED | {path: b"# a new header\n" + APPLIED[path] + b"# and an end\n" for path in (DECODE, HEADER)}
    install(site, later, version)
    assert engine.status(site, root).state == "superseded"
    for action in (engine.check, engine.apply, engine.revert):
        refused("superseded", action, site, root)
    assert tree(site) == expected(later, version)
    install(site, later | {DECODE: later[DECODE].replace(b"'more'", b"30")}, version)
    assert engine.status(site, root).state != "superseded", "one change of the series is missing"


def test_without_git(site, root, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert engine.status(site, root).state == "clean"
    assert "install git" in refused("git", engine.apply, site, root).remedy
    assert tree(site) == expected(CLEAN)


def test_revert_needs_no_git_if_the_originals_exist(site, root, monkeypatch):
    engine.apply(site, root)
    monkeypatch.setenv("PATH", "")
    engine.revert(site, root)
    assert tree(site) == expected(CLEAN)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_lost_original_is_computed_from_the_series(site, root, damage):
    engine.apply(site, root)
    original = site / STORE / "originals" / DECODE
    original.unlink() if damage == "gone" else original.write_bytes(b"something else\n")
    engine.revert(site, root)
    assert tree(site) == expected(CLEAN)


def test_no_flashinfer_in_the_target(tmp_path, root):
    (tmp_path / "empty" / "flashinfer").mkdir(parents=True)  # what an uninstall leaves if created files remain
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        error = refused("target", engine.status, folder, root)
        assert str(folder) in error.message


def test_the_installed_package_is_located_without_an_import(site, root, tmp_path, monkeypatch):
    (site / "flashinfer/__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(site))
    assert package.installed() == site and "flashinfer" not in sys.modules
    assert engine.status(root=root).target == site


def test_without_an_installed_package(tmp_path, root, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if "site-packages" not in p)])
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "editable" not in str(f)])
    assert package.installed() is None
    assert "--target" in refused("target", engine.status, None, root).remedy
    (tmp_path / "flashinfer").mkdir()
    assert package.installed() is None, "a folder without __init__.py is no FlashInfer"


def test_bytecode_of_the_old_source_is_never_run(site, root):
    """Size and second are unchanged by the patch: Python notices only removed bytecode or a later time."""
    same_size = CLEAN | {DECODE: CLEAN[DECODE].replace(b"line_8 = 8", b"line_8 = 7")}
    write_series(root, CLEAN, same_size)
    for mode in (py_compile.PycInvalidationMode.TIMESTAMP, py_compile.PycInvalidationMode.UNCHECKED_HASH):
        for action, value in ((engine.apply, "7"), (engine.revert, "8")):
            py_compile.compile(str(site / DECODE), invalidation_mode=mode)
            action(site, root)
            process = subprocess.run(
                [sys.executable, "-c", "from flashinfer import decode; print(decode.line_8)"],
                cwd=site,
                capture_output=True,
                text=True,
            )
            assert process.stdout.strip() == value, (mode, action, process.stderr)


def test_swapped_files_are_newer_than_the_replaced_files(site, root):
    """ninja and Python compare times: a reverted header must be newer than the objects built from ours."""
    for action in (engine.apply, engine.revert):
        before = (site / HEADER).stat()
        action(site, root)
        assert int((site / HEADER).stat().st_mtime) > int(before.st_mtime)


def test_file_modes_are_preserved(site, root):
    (site / DECODE).chmod(0o600)
    engine.apply(site, root)
    assert (site / DECODE).stat().st_mode & 0o777 == 0o600
    engine.revert(site, root)
    assert (site / DECODE).stat().st_mode & 0o777 == 0o600


PATCH = "import sys; from pathlib import Path; from flashinfer_patches import engine, errors\n" + (
    "try: print(engine.{verb}(Path(sys.argv[1]), Path(sys.argv[2])).state)\n"
    "except errors.Problem as e: print(e.kind, e.message, e.remedy)"
)


def mounted(unshared, mount, verb, site, root, then="true"):
    """Run the engine after `mount` in a mount namespace, and return its output; $2 is the target."""
    script = f'{mount}; "$0" -c "$1" "$2" "$3"; {then}'
    command = [*unshared, script, sys.executable, PATCH.format(verb=verb), str(site), str(root)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_read_only_target(site, root, unshared):
    remount = 'mount --bind "$2" "$2"; mount -o remount,bind,ro "$2"'
    output = mounted(unshared, remount, "apply", site, root)
    assert output.startswith("disk ") and "Read-only file system" in output and str(site / LOCK) in output
    assert tree(site) == expected(CLEAN)
    engine.apply(site, root)
    assert mounted(unshared, remount, "apply", site, root) == "applied\n", "an applied series writes nothing"


@pytest.mark.parametrize("kilobytes", [16, 20, 24, 28, 32, 36, 40, 44])
def test_a_full_disk(site, root, unshared, kilobytes, tmp_path):
    """The target on a tiny disk: whatever did not fit, a later revert restores the release."""
    after = tmp_path / "after"
    full = site.with_name("full")
    full.mkdir()
    mount = f'mount -t tmpfs -o size={kilobytes}k tiny "{full}"; cp -r "$2/." "{full}"; set -- "$1" "{full}" "$3"'
    output = mounted(unshared, mount, "apply", site, root, then=f'cp -r "{full}" "{after}"')
    assert output == "applied\n" or (output.startswith("disk ") and "No space left" in output)
    assert engine.status(after, root).state in ("clean", "partial", "applied")
    engine.revert(after, root)
    assert tree(after) == expected(CLEAN)


def test_applied_differs_from_clean_in_every_touched_file():
    assert {path for path in APPLIED if CLEAN.get(path) != APPLIED[path]} == {DECODE, SINKS, HEADER} and STEP != APPLIED
