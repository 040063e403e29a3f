"""Tests leave no process behind: limits scale with load, and an interrupted run ends what it started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kernels_tests import processes
from kernels_tests.processes import completed, scaled, spawn, wait_for, watched

# A test that starts a process with a child, as a launcher does, and hangs.
HANGING = """
import sys, time
from kernels_tests.processes import spawn, watched
CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
CHILD += "time.sleep(600)"

def test_hangs():
    with watched() as live:
        spawn([sys.executable, "-c", CHILD], start_new_session=True)
        while len(live()) < 2:
            time.sleep(0.05)
        open(sys.argv[-1] + ".up", "w").close()
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_ends_all_processes_of_its_tests(tmp_path, number):
    test = tmp_path / "test_hanging.py"
    test.write_text(HANGING)
    with watched() as live:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "kernels_tests.conftest", "-p", "no:cacheprovider"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        run = spawn([*command, str(test)], cwd=tmp_path, env=environment)
        wait_for(Path(f"{test}.up").exists)
        run.send_signal(number)
        wait_for(lambda: not live())


def test_spawned_processes_die_with_a_killed_parent():
    code = "import sys, time; from kernels_tests.processes import spawn\n"
    code += "spawn([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); time.sleep(600)"
    with watched() as live:
        run = spawn([sys.executable, "-c", code])
        wait_for(lambda: len(live()) == 2)
        run.kill()
        wait_for(lambda: not live())


def test_a_command_over_its_limit_fails_and_is_ended_with_its_children(monkeypatch):
    """Its child holds the pipes open, so subprocess.run would wait for the child without a limit."""
    monkeypatch.setattr(processes, "scaled", lambda seconds: seconds)
    with watched() as live:
        with pytest.raises(AssertionError, match="timed out"):
            completed(["sh", "-c", "sleep 600 & sleep 600"], 0.5)
        assert not live()


@pytest.mark.parametrize("ends_before", [False, True])
def test_adopted_processes_leave_no_zombie(ends_before):
    with watched() as live:
        run = spawn(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        orphan = int(run.stdout.readline())
        run.kill()
        wait_for(lambda: {process.pid for process in live()} == {orphan})
        if ends_before:
            os.kill(orphan, signal.SIGKILL)
            wait_for(lambda: not live())
    assert not psutil.pid_exists(orphan)
    assert run.wait() == -signal.SIGKILL, "the exit code of a spawned process is kept"


@pytest.mark.parametrize(
    ("cores", "load", "factor"), [(2, 0.5, 1), (8, 7.0, 1), (1, 0.1, 2), (2, 16.0, 8), (8, 16.0, 2)]
)
def test_limits_scale_with_cores_and_load(monkeypatch, cores, load, factor):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _pid: set(range(cores)))
    monkeypatch.setattr(processes.os, "getloadavg", lambda: (load, 0, 0))
    assert scaled(30) == pytest.approx(30 * factor)
