"""Two processes that need the same kernels on an empty cache: one compiles, or the other finishes what it could not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernels_tests.processes import output, spawn, wait_for, watched

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).with_name("build_script.py")
REPOSITORY = Path(__file__).parents[2]
# A module takes 20 to 30 s on 16 cores; the orphans of a killed builder finish theirs first.
LIMIT_S = 400


@pytest.fixture
def start(tmp_path):
    """Starts the script for so many modules on this test's cache; what still runs at the end is killed."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def process(modules: int) -> subprocess.Popen:
        command = [sys.executable, SCRIPT, tmp_path / "caches", tmp_path / "log", str(modules)]
        return spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    with watched():
        yield process


def said(process: subprocess.Popen) -> dict:
    out, err = output(process, LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_processes_build_each_module_once_and_both_run_it(start, tmp_path):
    first, second = (said(process) for process in [start(2), start(2)])
    assert [sum(pair) for pair in zip(first["built"], second["built"], strict=True)] == [1, 1]
    lines = [line.split()[:3] for line in (tmp_path / "log").read_text().splitlines()]
    # Each compilation has ended before the next begins.
    assert [line[0] for line in lines] == ["begin", "end"] * 2
    assert [line[1:] for line in lines[::2]] == [line[1:] for line in lines[1::2]]
    for one in (first, second):
        assert one["faults"] == [] and one["ran what was built"]
    third = said(start(2))
    assert third["built"] == [False, False] and third["faults"] == []


def test_what_a_killed_builder_began_the_other_finishes(start, tmp_path):
    builders = [start(1), start(1)]
    caches = tmp_path / "caches"
    wait_for(lambda: any(caches.rglob("*.o")) or any(one.poll() is not None for one in builders), LIMIT_S)
    assert all(one.poll() is None for one in builders), "no object was compiled"
    log = tmp_path / "log"
    (killed,) = [one for one in builders if one.pid == int(log.read_text().split()[1])]
    (other,) = [one for one in builders if one is not killed]
    killed.send_signal(signal.SIGKILL)
    assert "end" not in log.read_text(), "the builder was killed too late"
    found = said(other)
    assert found["built"] == [True] and found["faults"] == [] and found["ran what was built"]
    lines = log.read_text().splitlines()
    assert lines[1] == f"begin {other.pid} float8_e4m3fn with 0 objects" and lines[2].startswith("end")
    assert len(lines) == 3
