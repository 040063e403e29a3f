"""A builder that holds the lock, and a builder killed during a build."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from flashinfer_patches import jit_cache
from flashinfer_patches.errors import Problem
from kernels_tests.processes import scaled

BUILDER = """
import subprocess, sys, time
from pathlib import Path
from flashinfer_patches import jit_cache

def build():
    cache = Path(sys.argv[1]) / ".cache"
    cache.mkdir()
    (cache / "half.o").write_bytes(b"half")
    compiler = subprocess.Popen(["sleep", sys.argv[2]], cwd=cache)
    print(compiler.pid, flush=True)
    time.sleep(600)

jit_cache.built_once(Path(sys.argv[1]), "m", build)
"""


@pytest.fixture
def folder(tmp_path):
    return jit_cache.make(tmp_path / "caches" / "flashinfer-x")


class Builder(NamedTuple):
    """A process during a build, and the pid of its compiler."""

    process: subprocess.Popen
    compiler: int


@pytest.fixture
def build(folder):
    """A function that starts a builder whose compiler runs for so many seconds."""
    running = []

    def start(compiler_s: float) -> Builder:
        command = [sys.executable, "-c", BUILDER, str(folder), str(compiler_s)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(Builder(process, int(process.stdout.readline())))
        return running[-1]

    yield start
    for builder in running:
        builder.process.kill()
        builder.process.wait()
        builder.process.stdout.close()
        with suppress(ProcessLookupError):
            os.kill(builder.compiler, signal.SIGKILL)


def test_a_waiting_process_names_the_holder(folder, build):
    builder = build(30)
    for action in (lambda: jit_cache.built_once(folder, "m", pytest.fail, 0.2), lambda: jit_cache.wipe(folder)):
        with pytest.raises(Problem) as caught:
            action()
        assert caught.value.kind == "lock" and f"pid {builder.process.pid} (builds m)" in caught.value.message
    assert (folder / ".cache" / "half.o").exists()


def test_files_of_a_killed_builder_are_removed(folder, build):
    kill(build(0))
    assert jit_cache.caches(folder.parent)[0].interrupted
    seen = []
    assert jit_cache.built_once(folder, "m", lambda: seen.append((folder / ".cache").exists()), timeout_s=scaled(10))
    assert seen == [False], "an incomplete object was left"
    assert not jit_cache.caches(folder.parent)[0].interrupted


def test_the_compilers_of_a_killed_builder_end_before_the_next_build(folder, build):
    builder = build(1)
    kill(builder)
    assert jit_cache.built_once(folder, "m", lambda: assert_ended(builder.compiler), timeout_s=scaled(10))


def test_compilers_that_do_not_end_are_named(folder, build):
    builder = build(30)
    kill(builder)
    for action in (lambda: jit_cache.built_once(folder, "m", pytest.fail, 0.2), lambda: jit_cache.wipe(folder)):
        with pytest.raises(Problem) as caught:
            action()
        assert caught.value.kind == "lock" and f"pid {builder.compiler} (sleep)" in caught.value.message
    assert (folder / ".cache" / "half.o").exists(), "no file is removed while a compiler runs"


def kill(builder: Builder) -> None:
    builder.process.send_signal(signal.SIGKILL)
    builder.process.wait()


def assert_ended(pid: int) -> None:
    """Assert that the process has ended or is a zombie."""
    with suppress(FileNotFoundError):
        assert "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
