"""Folders for compiled kernels: named by what is in them, built into by one at a time, wiped only if they are ours."""

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


def test_patched_and_unpatched_kernels_never_meet(installed, tmp_path):
    """Every body of the sources has a folder of its own, and the same body always the same one."""
    stock = jit_cache.workspace(tmp_path)
    found = engine.apply()
    first = jit_cache.workspace(tmp_path)
    assert first == tmp_path / f"flashinfer-{found.patch_set}-torch2.11.0+cu130-cuda13.0"
    engine.revert()
    assert jit_cache.workspace(tmp_path) == stock
    write_series(tmp_path / "series", CLEAN, NEWER)  # the same release and files, another body
    engine.apply()
    newer = jit_cache.workspace(tmp_path)
    engine.revert()
    (installed / DECODE).write_bytes(b"mine = 1\n")
    edited = jit_cache.workspace(tmp_path)
    assert len({stock, first, newer, edited}) == 4
    assert not any(path.exists() for path in (stock, first, newer, edited)), "asking makes nothing"


def test_a_half_patched_flashinfer_gets_no_kernels(installed, tmp_path):
    (installed / DECODE).write_bytes(APPLIED[DECODE])
    with pytest.raises(Problem) as caught:
        jit_cache.workspace(tmp_path)
    assert "half patched" in caught.value.message and "fp8-sinks patch apply" in caught.value.remedy
    engine.apply()
    jit_cache.workspace(tmp_path)


def test_release_torch_and_cuda_have_folders_of_their_own(installed, tmp_path):
    found = {jit_cache.workspace(tmp_path)}
    (installed / "torch/version.py").write_bytes(TORCH.replace(b"2.11.0", b"2.14.0"))
    found.add(jit_cache.workspace(tmp_path))
    (installed / "torch/version.py").write_bytes(TORCH.replace(b"'13.0'", b"'12.9'"))
    found.add(jit_cache.workspace(tmp_path))
    (installed / "torch/version.py").write_bytes(TORCH.replace(b"'13.0'", b"None"))
    found.add(jit_cache.workspace(tmp_path))
    install(installed, version="0.8.0")
    found.add(jit_cache.workspace(tmp_path))
    assert len(found) == 5


def test_without_flashinfer_there_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jit_cache.engine.package, "installed", lambda: None)
    with pytest.raises(Problem) as caught:
        jit_cache.workspace(tmp_path)
    assert caught.value.kind == "target"


@pytest.mark.parametrize("how", ["wheel", "aot"])
def test_prebuilt_kernels_that_would_hide_a_patch(installed, tmp_path, how):
    prebuilt = {"wheel": "flashinfer_jit_cache/__init__.py", "aot": "flashinfer/data/aot/sinks/sinks.so"}[how]
    write(installed, {prebuilt: b""})
    jit_cache.workspace(tmp_path)  # nothing to hide
    engine.apply()
    with pytest.raises(Problem) as caught:
        jit_cache.workspace(tmp_path)
    assert caught.value.kind == "cache" and "in place of the patched sources" in caught.value.message
    assert "fp8-sinks patch revert" in caught.value.remedy
    (installed / prebuilt).unlink()
    (installed / prebuilt).parent.rmdir()
    jit_cache.workspace(tmp_path)


def test_caches_are_listed_and_wiped(folder):
    write(folder, {".cache/flashinfer/0.6.14/90a/cached_ops/m/m.so": b"x" * 1000})
    jit_cache.built_once(folder, "m", lambda: None)
    (found,) = jit_cache.caches(folder.parent)
    assert (found.path, found.built, found.interrupted) == (folder, ["m"], False) and found.bytes >= 1000
    assert jit_cache.wipe(folder) == found.bytes
    assert list(folder.parent.iterdir()) == [] and jit_cache.caches(folder.parent) == []


def not_ours(tmp_path, folder, how):
    other = tmp_path / "caches" / "other"
    if how == "no marker":
        write(other, {"precious": b"x"})
    elif how == "another's marker":
        shutil.copytree(folder, other)
    elif how == "a broken marker":
        write(other, {jit_cache.MARKER: b"{"})
    elif how == "a link to one":
        other = tmp_path / "links" / folder.name
        other.parent.mkdir()
        other.symlink_to(folder)
    elif how == "a linked marker":
        write(tmp_path, {"elsewhere": json.dumps({"name": "other"}).encode()})
        other.mkdir()
        (other / jit_cache.MARKER).symlink_to(tmp_path / "elsewhere")
    elif how == "the user's own":
        other = Path.home() / ".cache" / "flashinfer"
        write(other, {jit_cache.MARKER: b'{"name": "flashinfer"}', "0.6.14/kernel.so": b"x"})
    return other


@pytest.mark.parametrize(
    "how",
    ["no marker", "another's marker", "a broken marker", "a link to one", "a linked marker", "the user's own", "none"],
)
def test_nothing_else_is_wiped(tmp_path, folder, how):
    other = not_ours(tmp_path, folder, how)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Problem) as caught:
        jit_cache.wipe(other)
    assert caught.value.kind == "cache" and str(other) in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before
    assert [one.path for one in jit_cache.caches(other.parent)] == ([folder] if other.parent == folder.parent else [])


def test_a_wipe_follows_no_link(tmp_path, folder):
    write(tmp_path / "precious", {"file": b"x"})
    (folder / "folder").symlink_to(tmp_path / "precious")
    (folder / "deep").mkdir()
    (folder / "deep" / "file").symlink_to(tmp_path / "precious" / "file")
    jit_cache.wipe(folder)
    assert (tmp_path / "precious" / "file").read_bytes() == b"x" and not folder.exists()


def test_no_link_is_followed_to_write(tmp_path, folder):
    """Of a cache's marker, of the note that it is built into, and of what was built."""
    precious = tmp_path / "precious"
    (folder.parent / f".other.marker-{os.getpid()}").symlink_to(precious)
    (folder / jit_cache.BUILDING).symlink_to(precious)
    (folder / jit_cache.BUILT).mkdir()
    (folder / jit_cache.BUILT / "m").symlink_to(precious)
    assert jit_cache.make(folder.parent / "other") and jit_cache.built_once(folder, "m", lambda: None)
    assert not precious.exists() and (folder / jit_cache.BUILT / "m").is_file()


def test_a_folder_of_somebody_else_is_not_made_ours(tmp_path, folder):
    write(tmp_path / "theirs", {"file": b"x"})
    (tmp_path / "link").symlink_to(folder)
    for place in (tmp_path / "theirs", tmp_path / "link"):
        with pytest.raises(Problem) as caught:
            jit_cache.make(place)
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


def test_a_failed_build_is_raised_and_tried_again(folder):
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
    ("options", "said"),
    [("size=1m", "MiB free, a build needs 512"), ("size=1m,nr_inodes=1", "No space left on device")],
)
def test_a_full_disk_is_said_before_the_build(tmp_path, unshared, options, said):
    script = f'mount -t tmpfs -o {options} tiny "$2"; "$0" -c "$1" "$2"'
    done = subprocess.run([*unshared, script, sys.executable, SMALL, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith("write ") and said in done.stdout, done.stderr


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for action in (jit_cache.make, lambda place: jit_cache.built_once(place, "m", pytest.fail)):
        with pytest.raises(Problem) as caught:
            action(tmp_path / "file" / "cache")
        assert caught.value.kind == "write"
    assert os.listdir(tmp_path) == ["file"]
