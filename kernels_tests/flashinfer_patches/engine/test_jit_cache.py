"""Kernel caches: named by their sources, built by a single process, wiped only if they are ours."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashinfer_patches import engine, jit_cache
from flashinfer_patches.errors import Problem
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    NEWER,
    TORCH,
    at_once,
    install,
    write,
    write_series,
)


@pytest.fixture
def folder(tmp_path):
    return jit_cache.make(tmp_path / "caches" / "flashinfer-x")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_patched_and_unpatched_kernels_have_separate_folders(installed, tmp_path):
    """Different sources have different folders, the same sources always the same folder."""
    stock = jit_cache.workspace(tmp_path)
    applied = engine.apply()
    first = jit_cache.workspace(tmp_path)
    assert first == tmp_path / f"flashinfer-{applied.patch_set}-torch2.11.0+cu130-cuda13.0"
    engine.revert()
    assert jit_cache.workspace(tmp_path) == stock
    write_series(tmp_path / "series", CLEAN, NEWER)  # the same release and files, another body
    engine.apply()
    newer = jit_cache.workspace(tmp_path)
    engine.revert()
    (installed / DECODE).write_bytes(b"mine = 1\n")
    edited = jit_cache.workspace(tmp_path)
    assert len({stock, first, newer, edited}) == 4
    assert not any(path.exists() for path in (stock, first, newer, edited)), "workspace() creates nothing"


def test_a_partially_patched_flashinfer_has_no_folder(installed, tmp_path):
    (installed / DECODE).write_bytes(APPLIED[DECODE])
    with pytest.raises(Problem) as caught:
        jit_cache.workspace(tmp_path)
    assert caught.value.kind == "edited" and "fp8-sinks patch apply" in caught.value.remedy
    engine.apply()
    jit_cache.workspace(tmp_path)


def test_each_release_torch_and_cuda_has_its_folder(installed, tmp_path):
    folders = {jit_cache.workspace(tmp_path)}
    (installed / "torch/version.py").write_bytes(TORCH.replace(b"2.11.0", b"2.14.0"))
    folders.add(jit_cache.workspace(tmp_path))
    (installed / "torch/version.py").write_bytes(TORCH.replace(b"'13.0'", b"'12.9'"))
    folders.add(jit_cache.workspace(tmp_path))
    (installed / "torch/version.py").write_bytes(TORCH.replace(b"'13.0'", b"None"))
    folders.add(jit_cache.workspace(tmp_path))
    install(installed, version="0.8.0")
    folders.add(jit_cache.workspace(tmp_path))
    assert len(folders) == 5


def test_without_flashinfer_there_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jit_cache.engine.package, "installed", lambda: None)
    with pytest.raises(Problem) as caught:
        jit_cache.workspace(tmp_path)
    assert caught.value.kind == "target"


@pytest.mark.parametrize("source", ["wheel", "aot"])
def test_prebuilt_kernels_that_would_hide_a_patch(installed, tmp_path, source):
    prebuilt = {"wheel": "flashinfer_jit_cache/__init__.py", "aot": "flashinfer/data/aot/sinks/sinks.so"}[source]
    write(installed, {prebuilt: b""})
    jit_cache.workspace(tmp_path)  # nothing to hide
    engine.apply()
    with pytest.raises(Problem) as caught:
        jit_cache.workspace(tmp_path)
    assert caught.value.kind == "cache" and "fp8-sinks patch revert" in caught.value.remedy
    (installed / prebuilt).unlink()
    (installed / prebuilt).parent.rmdir()
    jit_cache.workspace(tmp_path)


def test_caches_are_listed_and_wiped(folder):
    write(folder, {".cache/flashinfer/0.6.14/90a/cached_ops/m/m.so": b"x" * 1000})
    jit_cache.built_once(folder, "m", lambda: None)
    (cache,) = jit_cache.caches(folder.parent)
    assert (cache.path, cache.built, cache.interrupted) == (folder, ["m"], False) and cache.bytes >= 1000
    assert jit_cache.wipe(folder) == cache.bytes
    assert list(folder.parent.iterdir()) == [] and jit_cache.caches(folder.parent) == []


def foreign_folder(tmp_path, folder, kind):
    path = tmp_path / "caches" / "foreign"
    if kind == "no marker":
        write(path, {"precious": b"x"})
    elif kind == "another's marker":
        shutil.copytree(folder, path)
    elif kind == "a broken marker":
        write(path, {jit_cache.MARKER: b"{"})
    elif kind == "a link to a cache":
        path = tmp_path / "links" / folder.name
        path.parent.mkdir()
        path.symlink_to(folder)
    elif kind == "a linked marker":
        write(tmp_path, {"elsewhere": json.dumps({"name": "foreign"}).encode()})
        path.mkdir()
        (path / jit_cache.MARKER).symlink_to(tmp_path / "elsewhere")
    elif kind == "the user's":
        path = Path.home() / ".cache" / "flashinfer"
        write(path, {jit_cache.MARKER: b'{"name": "flashinfer"}', "0.6.14/kernel.so": b"x"})
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "no marker",
        "another's marker",
        "a broken marker",
        "a link to a cache",
        "a linked marker",
        "the user's own",
        "none",
    ],
)
def test_only_our_caches_are_wiped(tmp_path, folder, kind):
    path = foreign_folder(tmp_path, folder, kind)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Problem) as caught:
        jit_cache.wipe(path)
    assert caught.value.kind == "cache" and str(path) in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before
    assert [cache.path for cache in jit_cache.caches(path.parent)] == ([folder] if path.parent == folder.parent else [])


def test_a_wipe_follows_no_link(tmp_path, folder):
    write(tmp_path / "precious", {"file": b"x"})
    (folder / "folder").symlink_to(tmp_path / "precious")
    (folder / "deep").mkdir()
    (folder / "deep" / "file").symlink_to(tmp_path / "precious" / "file")
    jit_cache.wipe(folder)
    assert (tmp_path / "precious" / "file").read_bytes() == b"x" and not folder.exists()


def test_no_link_is_followed_to_write(tmp_path, folder):
    """At the paths of the marker, of the building file and of a built module."""
    precious = tmp_path / "precious"
    (folder.parent / f".other.marker-{os.getpid()}").symlink_to(precious)
    (folder / jit_cache.BUILDING).symlink_to(precious)
    (folder / jit_cache.BUILT).mkdir()
    (folder / jit_cache.BUILT / "m").symlink_to(precious)
    assert jit_cache.make(folder.parent / "other") and jit_cache.built_once(folder, "m", lambda: None)
    assert not precious.exists() and (folder / jit_cache.BUILT / "m").is_file()


def test_a_foreign_folder_is_not_marked(tmp_path, folder):
    write(tmp_path / "theirs", {"file": b"x"})
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "theirs", tmp_path / "link"):
        with pytest.raises(Problem) as caught:
            jit_cache.make(path)
        assert caught.value.kind == "cache"
    assert list((tmp_path / "theirs").iterdir()) == [tmp_path / "theirs" / "file"]


def test_many_processes_build_once(folder):
    log = folder.parent / "log"

    def build():
        with open(log, "a") as file:
            file.write("begin\n")
            file.flush()
            time.sleep(0.2)
            file.write("end\n")

    assert all(at_once(*[lambda: jit_cache.built_once(folder, "m", build)] * 6))
    assert log.read_text() == "begin\nend\n"
    assert not jit_cache.built_once(folder, "m", build) and jit_cache.built_once(folder, "other", build)


def test_a_failed_build_is_raised_and_repeated(folder):
    write(folder, {".cache/other.so": b"x"})
    jit_cache.built_once(folder, "other", lambda: None)

    def fails():
        raise RuntimeError("nvcc: error")

    with pytest.raises(RuntimeError, match="nvcc: error"):
        jit_cache.built_once(folder, "m", fails)
    assert jit_cache.built_once(folder, "m", lambda: None)
    assert (folder / ".cache/other.so").exists() and not jit_cache.built_once(folder, "other", pytest.fail)


def test_a_wiped_cache_is_built_again(folder):
    jit_cache.built_once(folder, "m", lambda: None)
    jit_cache.wipe(folder)
    assert jit_cache.built_once(folder, "m", lambda: None)


@pytest.mark.parametrize("module", ["../m", "..", "", "a/b", "a b"])
def test_names_of_modules(folder, module):
    with pytest.raises(ValueError, match="module"):
        jit_cache.built_once(folder, module, pytest.fail)


SMALL = (
    "import sys; from pathlib import Path; from flashinfer_patches import errors, jit_cache\n"
    "try: jit_cache.built_once(Path(sys.argv[1]) / 'c', 'm', lambda: print('built'))\n"
    "except errors.Problem as e: print(e.kind, e.message, e.remedy)"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [("size=1m", "MiB free, a build needs 512"), ("size=1m,nr_inodes=1", "No space left on device")],
)
def test_a_full_disk_is_reported_before_the_build(tmp_path, unshared, options, message):
    script = f'mount -t tmpfs -o {options} tiny "$2"; "$0" -c "$1" "$2"'
    process = subprocess.run([*unshared, script, sys.executable, SMALL, str(tmp_path)], capture_output=True, text=True)
    assert process.stdout.startswith("disk ") and message in process.stdout, process.stderr


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    for action in (jit_cache.make, lambda path: jit_cache.built_once(path, "m", pytest.fail)):
        with pytest.raises(Problem) as caught:
            action(tmp_path / "file" / "cache")
        assert caught.value.kind == "disk"
    assert os.listdir(tmp_path) == ["file"]
