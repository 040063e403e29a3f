"""kill -9 at every step, races, and sequences of both: the next apply or revert gives the exact files."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashinfer_patches import engine, locking
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import LOCK
from kernels_tests.flashinfer_patches.engine.worlds import (
    APPLIED,
    CLEAN,
    DECODE,
    NEWER,
    SINKS,
    STEP,
    VERSION,
    at_once,
    dies_at,
    expected,
    install,
    link,
    package_tree,
    tree,
    write_series,
)
from kernels_tests.processes import scaled

ENDS = {"apply": engine.apply, "revert": engine.revert}


def ends_right(site, root, end, files=APPLIED, release=VERSION, clean=CLEAN):
    """Apply or revert, and compare the whole tree: package, folders and store."""
    ENDS[end](site, root)
    if end == "revert":
        assert tree(site) == expected(clean, release)
        return
    assert package_tree(site) == expected(files, release)
    beside = {path for path in tree(site) if path.startswith(".")}
    assert not any(path.startswith(LOCK) or "staged" in path or re.search(r"\.\d+$", path) for path in beside), beside
    assert len([path for path in beside if path.endswith(".json")]) == 1


# Which created file each body of the decode module would import.
NEEDS = {APPLIED[DECODE]: SINKS, NEWER[DECODE]: "flashinfer/lse.py"}


def killed_before_every_line(root, start, action, files):
    """Apply and revert, from every different tree that a kill of action(tree) leaves, give the exact files."""
    site, copy, seen, line, died = start.with_name("site"), start.with_name("copy"), set(), 0, True
    while died:
        line += 1
        shutil.copytree(start, site, symlinks=True)
        died = dies_at(line, lambda: action(site, root))
        left = frozenset(tree(site).items())
        if need := NEEDS.get((site / DECODE).read_bytes()):
            assert (site / need).exists(), "an import of the package misses a file"
        if left not in seen:
            shutil.copytree(site, copy, symlinks=True)
            ends_right(site, root, "apply", files)
            ends_right(copy, root, "revert", files)
            shutil.rmtree(copy)
        seen.add(left)
        shutil.rmtree(site)
    assert len(seen) > 15, "the kills left too few different trees"


@pytest.mark.parametrize("interrupted", ["apply", pytest.param("revert", marks=pytest.mark.long)])
def test_killed_before_every_line(tmp_path, root, interrupted):
    """Each line of locking, storing, swapping and tidying in an apply or a revert."""
    start = install(tmp_path / "start")
    if interrupted == "revert":
        engine.apply(start, root)
    killed_before_every_line(root, start, ENDS[interrupted], APPLIED)


@pytest.mark.long
def test_killed_before_every_line_between_two_patch_sets(tmp_path, root):
    start = install(tmp_path / "start")
    engine.apply(start, root)
    write_series(root, CLEAN, NEWER)
    killed_before_every_line(root, start, engine.apply, NEWER)


@pytest.mark.long
def test_killed_before_every_line_of_a_linked_package(tmp_path, root):
    """As uv links it: the targets of the links are never changed."""
    source = install(tmp_path / "source")
    killed_before_every_line(root, link(source, tmp_path / "start"), engine.apply, APPLIED)
    assert tree(source) == expected(CLEAN)


LATER = {path: data + b"\n" for path, data in CLEAN.items()}
LATER_APPLIED = LATER | {DECODE: b"z = 3\n"}
LATER_VERSION = "0.7.2.post1"
LINES = st.integers(min_value=1, max_value=250)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["apply", "revert", "reinstall", "upgrade", "newer series", "older series"])),
    st.tuples(st.sampled_from(["killed apply", "killed revert"]), LINES),
    st.tuples(st.just("at once"), st.lists(st.sampled_from(sorted(ENDS)), min_size=2, max_size=4)),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=6), end=st.sampled_from(sorted(ENDS)))
def test_any_sequence_ends_exactly_applied_or_clean(tmp_path, root, steps, end):
    site = tmp_path / "site"
    shutil.rmtree(site, ignore_errors=True)
    install(site)
    write_series(root, CLEAN, STEP, APPLIED)
    write_series(root, LATER, LATER_APPLIED, version=LATER_VERSION)
    release, clean, applied = VERSION, CLEAN, APPLIED
    for name, *arguments in steps:
        if name in ENDS:
            ends_right(site, root, name, LATER_APPLIED if release == LATER_VERSION else applied, release, clean)
        elif name == "reinstall":
            install(site, clean, release)
        elif name == "upgrade":
            release, clean = (LATER_VERSION, LATER) if release == VERSION else (VERSION, CLEAN)
            install(site, clean, release)
        elif name == "newer series":
            write_series(root, CLEAN, NEWER)
            applied = NEWER
        elif name == "older series":
            write_series(root, CLEAN, STEP, APPLIED)
            applied = APPLIED
        elif name == "at once":
            assert all(at_once(*(lambda verb=verb: ENDS[verb](site, root) for verb in arguments[0])))
        else:
            verb = ENDS[name.removeprefix("killed ")]
            dies_at(arguments[0], lambda verb=verb: verb(site, root))
    ends_right(site, root, end, LATER_APPLIED if release == LATER_VERSION else applied, release, clean)


def test_concurrent_processes(site, root):
    """Eight processes apply and revert the same tree: each succeeds, and the tree is applied or clean."""
    for _ in range(5):
        assert all(at_once(*(lambda verb=verb: ENDS[verb](site, root) for verb in ["apply", "revert"] * 4)))
        state = engine.status(site, root).state
        assert package_tree(site) == expected({"applied": APPLIED, "clean": CLEAN}[state])
        assert not (site / LOCK).exists()


HOLD = (
    "import sys, time; from pathlib import Path; from flashinfer_patches import locking\n"
    "with locking.held(Path(sys.argv[1]), 'a slow apply', 0): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def slow(site):
    """A process that holds the lock of the target."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(site / LOCK)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    yield holder
    holder.kill()
    holder.wait()
    holder.stdout.close()


def test_a_held_lock_names_its_holder(site, root, slow):
    start = time.monotonic()
    with pytest.raises(Problem) as caught:
        engine.apply(site, root, timeout_s=0.3)
    assert caught.value.kind == "lock" and time.monotonic() - start < scaled(5)
    assert f"pid {slow.pid} (a slow apply)" in caught.value.message and str(site / LOCK) in caught.value.message
    assert package_tree(site) == expected(CLEAN)


def test_the_lock_of_a_killed_holder_is_free(site, root, slow):
    os.kill(slow.pid, signal.SIGKILL)
    slow.wait()
    assert (site / LOCK).exists()
    engine.apply(site, root, timeout_s=0.3)
    assert package_tree(site) == expected(APPLIED) and not (site / LOCK).exists()


def test_a_lock_on_a_removed_file_is_retried(tmp_path, monkeypatch):
    """A holder removes the file after the next has opened it, and before that locks it."""
    lock, real, calls = tmp_path / "lock", fcntl.flock, []

    def flock(handle, operation):
        if not calls:
            lock.unlink()
        calls.append(handle)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locking.held(lock, "first", 5):
        assert len(calls) == 2 and lock.read_text().startswith(f"pid {os.getpid()} (first)")
        with pytest.raises(Problem, match="first"), locking.held(lock, "second", 0):
            pass
    assert not lock.exists()


@pytest.mark.parametrize("verb", ENDS)
def test_changes_during_the_wait_for_the_lock_count(site, root, monkeypatch, verb):
    ENDS[verb](site, root)
    (site / LOCK).touch()  # a sign of a running process: neither apply nor revert returns early
    real = locking.held

    @contextmanager
    def held(*arguments):
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(locking, "held", real)
            ENDS["revert" if verb == "apply" else "apply"](site, root)
        with real(*arguments):
            yield

    monkeypatch.setattr(locking, "held", held)
    ends_right(site, root, verb)
