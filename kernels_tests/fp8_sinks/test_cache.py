"""`fp8-sinks cache`: FlashInfer's kernels and our own, listed and wiped together, and nothing else."""

import json

import pytest
from click.testing import CliRunner

from flashinfer_patches import jit_cache, locking
from flashinfer_patches.errors import EXIT_CODES
from fp8_sinks import cache
from fp8_sinks.cli import main
from kernels_tests.flashinfer_patches.engine import worlds
from lowp.jit import kernel_cache

NAME = "0123456789abcdef" * 2


def run(*words):
    return CliRunner().invoke(main, ["cache", *map(str, words)])


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """The folders that hold FlashInfer's caches and ours, each with one cache in it; returns both caches."""
    monkeypatch.setattr(cache.jit_cache, "ROOT", tmp_path / "flashinfer")
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / "lowp"))
    jit_cache.built_once(tmp_path / "flashinfer" / "b", "m", lambda: None)
    kernel_cache.store(tmp_path / "lowp" / "sink_decode" / f"{NAME}.cubin", b"x" * (1 << 20))
    return tmp_path / "flashinfer" / "b", tmp_path / "lowp" / "sink_decode"


def test_both_are_listed_and_wiped(roots):
    theirs, ours = roots
    assert run("list").stdout == f"{theirs}  0.0 MiB  1 built\n{ours}  1.0 MiB  1 built\n"
    listed = json.loads(run("list", "--json").stdout)
    assert [(one["path"], one["built"]) for one in listed] == [(str(theirs), ["m"]), (str(ours), [NAME])]
    done = run("wipe")
    assert done.exit_code == 0 and done.stderr == "" and done.stdout.endswith(f"{ours}  1.0 MiB freed\n")
    assert not theirs.exists() and not ours.exists() and run("list").stdout == ""


def test_nothing_else_is_wiped(roots):
    theirs, ours = roots
    worlds.write(theirs.parent / "theirs", {"file": b"x"})
    worlds.write(ours, {"notes.txt": b"x", f"{NAME}.txt": b"x"})
    worlds.write(ours.parent / "other", {f"{NAME}.cubin": b"x"})
    (ours.parent / "linked").symlink_to(ours)
    done = run("wipe", "--json")
    assert done.exit_code == 0 and sorted(json.loads(done.stdout)) == [str(theirs), str(ours)]
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["theirs", "linked, other, sink_decode"]
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs"]
    kept = {"notes.txt": b"x", f"{NAME}.txt": b"x", kernel_cache.MARKER: b""}
    assert worlds.tree(ours) == kept, "the folder stays a cache, since others have files in it"
    assert (ours.parent / "other" / f"{NAME}.cubin").exists()


def test_one_root(roots, monkeypatch):
    theirs, ours = roots
    monkeypatch.setattr(jit_cache, "workspace", lambda root: root / "of the installed one")
    assert str(ours) not in run("list", "--root", theirs.parent).stdout
    assert run("wipe", "--root", ours.parent).exit_code == 0 and theirs.exists() and not ours.exists()
    place = run("path", "--root", theirs.parent).stdout.strip()
    told = json.loads(run("path", "--root", theirs.parent, "--json").stdout)
    assert told == {"path": place, "lowp": str(ours.parent)} and place.startswith(str(theirs.parent))


def test_what_was_wiped_before_a_locked_cache_is_said(tmp_path):
    first, second = (jit_cache.make(tmp_path / name) for name in "ab")
    with locking.held(tmp_path / ".b.lock", "builds m", 0):
        done = run("wipe", "--root", tmp_path)
    assert done.exit_code == EXIT_CODES["lock"] and "builds m" in done.stderr
    assert done.stdout == f"{first}  0.0 MiB freed\n" and not first.exists() and second.exists()
