"""Two processes with an empty cache: one compiles, and the other takes over if that is killed."""

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
    """A function that starts the script for so many modules; running processes are killed at the end."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def process(modules: int) -> subprocess.Popen:
        command = [sys.executable, SCRIPT, tmp_path / "caches", tmp_path / "log", str(modules)]
        return spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    with watched():
        yield process


def result(process: subprocess.Popen) -> dict:
    out, err = output(process, LIMIT_S)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_processes_build_each_module_once_and_both_run_it(start, tmp_path):
    first, second = (result(process) for process in [start(2), start(2)])
    assert [sum(pair) for pair in zip(first["built"], second["built"], strict=True)] == [1, 1]
    lines = [line.split()[:3] for line in (tmp_path / "log").read_text().splitlines()]
    # Each compilation ends before the next starts.
    assert [line[0] for line in lines] == ["start", "end"] * 2
    assert [line[1:] for line in lines[::2]] == [line[1:] for line in lines[1::2]]
    for printed in (first, second):
        assert printed["faults"] == [] and printed["ran what was built"]
    third = result(start(2))
    assert third["built"] == [False, False] and third["faults"] == []


def test_the_build_of_a_killed_builder_is_taken_over(start, tmp_path):
    builders = [start(1), start(1)]
    caches = tmp_path / "caches"
    wait_for(lambda: any(caches.rglob("*.o")) or any(builder.poll() is not None for builder in builders), LIMIT_S)
    assert all(builder.poll() is None for builder in builders), "no object was compiled"
    log = tmp_path / "log"
    (killed,) = [builder for builder in builders if builder.pid == int(log.read_text().split()[1])]
    (survivor,) = [builder for builder in builders if builder is not killed]
    killed.send_signal(signal.SIGKILL)
    assert "end" not in log.read_text(), "the builder was killed too late"
    built = result(survivor)
    assert built["built"] == [True] and built["faults"] == [] and built["ran what was built"]
    lines = log.read_text().splitlines()
    assert lines[1] == f"start {survivor.pid} float8_e4m3fn with 0 objects" and lines[2].startswith("end")
    assert len(lines) == 3
