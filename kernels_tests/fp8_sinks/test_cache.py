"""`fp8-sinks cache`: FlashInfer's kernels and our own are listed and wiped together, and no other files."""

import json

import pytest
from click.testing import CliRunner

from flashinfer_patches import jit_cache, locking
from flashinfer_patches.errors import EXIT_CODES
from fp8_sinks import cache
from fp8_sinks.cli import main
from kernels_tests.flashinfer_patches.engine import worlds
from lowp import kernel_cache

NAME = "0123456789abcdef" * 2


def run(*words):
    return CliRunner().invoke(main, ["cache", *map(str, words)])


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """A cache of FlashInfer's kernels and a cache of ours, each in a folder of its own."""
    monkeypatch.setattr(cache.jit_cache, "ROOT", tmp_path / "flashinfer")
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / "lowp"))
    jit_cache.built_once(tmp_path / "flashinfer" / "b", "m", lambda: None)
    kernel_cache.store(tmp_path / "lowp" / "sink_decode" / f"{NAME}.cubin", b"x" * (1 << 20))
    return tmp_path / "flashinfer" / "b", tmp_path / "lowp" / "sink_decode"


def test_both_are_listed_and_wiped(roots):
    theirs, ours = roots
    assert run("list").stdout == f"{theirs}  0.0 MiB  1 built\n{ours}  1.0 MiB  1 built\n"
    listed = json.loads(run("list", "--json").stdout)
    assert [(cache["path"], cache["built"]) for cache in listed] == [(str(theirs), ["m"]), (str(ours), [NAME])]
    result = run("wipe")
    assert result.exit_code == 0 and result.stderr == "" and result.stdout.endswith(f"{ours}  1.0 MiB freed\n")
    assert not theirs.exists() and not ours.exists() and run("list").stdout == ""


def test_other_files_are_not_wiped(roots):
    theirs, ours = roots
    worlds.write(theirs.parent / "theirs", {"file": b"x"})
    worlds.write(ours, {"notes.txt": b"x", f"{NAME}.txt": b"x"})
    worlds.write(ours.parent / "other", {f"{NAME}.cubin": b"x"})
    (ours.parent / "linked").symlink_to(ours)
    result = run("wipe", "--json")
    assert result.exit_code == 0 and sorted(json.loads(result.stdout)) == [str(theirs), str(ours)]
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["theirs", "linked, other, sink_decode"]
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs"]
    remaining = {"notes.txt": b"x", f"{NAME}.txt": b"x", kernel_cache.MARKER: b""}
    assert worlds.tree(ours) == remaining, "the folder stays a cache if it has other files"
    assert (ours.parent / "other" / f"{NAME}.cubin").exists()


def test_the_root_option(roots, monkeypatch):
    theirs, ours = roots
    monkeypatch.setattr(jit_cache, "workspace", lambda root: root / "workspace")
    assert str(ours) not in run("list", "--root", theirs.parent).stdout
    assert run("wipe", "--root", ours.parent).exit_code == 0 and theirs.exists() and not ours.exists()
    path = run("path", "--root", theirs.parent).stdout.strip()
    printed = json.loads(run("path", "--root", theirs.parent, "--json").stdout)
    assert printed == {"path": path, "lowp": str(ours.parent)} and path.startswith(str(theirs.parent))


def test_caches_wiped_before_a_locked_cache_are_printed(tmp_path):
    first, second = (jit_cache.make(tmp_path / name) for name in "ab")
    with locking.held(tmp_path / ".b.lock", "builds m", 0):
        result = run("wipe", "--root", tmp_path)
    assert result.exit_code == EXIT_CODES["lock"] and "builds m" in result.stderr
    assert result.stdout == f"{first}  0.0 MiB freed\n" and not first.exists() and second.exists()
