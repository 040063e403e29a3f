"""Kill any two of launcher, both supervisors, API server, engine and worker at once: no process is left.

The server is hostile.py, so this needs no vLLM; test_server.py does the same with the real server.
"""

import os
import signal
import subprocess
import sys
from itertools import combinations

import psutil
import pytest

from kernels_tests.processes import alive, spawn, wait_for, watched
from kernels_tests.vllm_launch import hostile
from vllm_launch import marks

LAUNCHER = """
import os, sys
from pathlib import Path
from vllm_launch import server
log, nonce, *command = sys.argv[1:]
with server.supervised(command, os.environ | {"FP8_SINKS_RUN": nonce}, Path(log), grace_s=0.3) as supervisor:
    supervisor.wait()
"""
KILLED = ("launcher", "outer supervisor", "inner supervisor", "api", "engine", "worker")


def pids_of(folder):
    """Wait for all processes of a hostile server; return their pids by role."""
    wait_for(lambda: all((folder / role).exists() for role in hostile.ROLES))
    return {role: int((folder / role).read_text()) for role in hostile.ROLES}


@pytest.fixture
def tree(tmp_path):
    """Start a launcher with a hostile server; yields (pids by role, a function that lists the live processes)."""
    with watched() as live:
        command = [sys.executable, hostile.__file__, str(tmp_path)]
        launcher = spawn([sys.executable, "-c", LAUNCHER, str(tmp_path / "log"), str(tmp_path), *command])
        pids = {"launcher": launcher.pid, **pids_of(tmp_path)}
        supervisors = [p for p in live() if "vllm_launch.supervisor" in p.cmdline()]
        (outer,) = (p for p in supervisors if p.ppid() == launcher.pid)
        (inner,) = (p for p in supervisors if p.ppid() == outer.pid)
        pids |= {"outer supervisor": outer.pid, "inner supervisor": inner.pid}
        wait_for(lambda: {p.pid for p in live()} == set(pids.values()))  # the watcher sees exactly these
        yield pids, live


@pytest.mark.long
@pytest.mark.parametrize("pair", list(combinations(KILLED, 2)), ids=" and ".join)
def test_any_two_killed_at_once_leave_nothing(tree, pair):
    pids, live = tree
    for role in pair:
        os.kill(pids[role], signal.SIGKILL)
    wait_for(lambda: not live())


def test_the_watcher_reports_every_orphan(tmp_path):
    """Without supervisors the parents die at once; `runaway` keeps nothing but the log."""
    with watched() as live:
        spawn([sys.executable, hostile.__file__, str(tmp_path)])
        pids = pids_of(tmp_path)
        for role in ("api", "engine"):
            os.kill(pids[role], signal.SIGKILL)
        left = {"worker", "runaway", "silent"}
        wait_for(lambda: {p.pid for p in live()} == {pids[role] for role in left})
    assert not any(alive(pid) for pid in pids.values()), "what is left at the end is killed"


@pytest.fixture
def server(tmp_path):
    """Start a hostile server without a supervisor; yields (marks, pids by role)."""
    with watched(), (tmp_path / "log").open("w") as log:
        command = [sys.executable, hostile.__file__, str(tmp_path)]
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"FP8_SINKS_RUN": str(tmp_path)}, start_new_session=True
        )
        carried, pids = marks.of_server(str(tmp_path), process.pid, tmp_path / "log"), pids_of(tmp_path)
        wait_for(lambda: {p.pid for p in marks.processes(carried)} == set(pids.values()))
        yield carried, pids


def test_each_mark_alone_finds_its_processes(server):
    carried, pids = server
    for lost, unseen in (({"nonce": "x"}, "silent"), ({"session": 1}, None), ({"log": carried.log.parent}, "runaway")):
        fewer = marks.Marks(**(vars(carried) | lost))
        seen = {p.pid for p in marks.processes(fewer)}
        assert seen == set(pids.values()) - {pids.get(unseen)}, lost
    assert marks.kill(carried, 20) == [] and not any(alive(pid) for pid in pids.values())


def test_processes_without_our_marks_are_spared(server):
    """An older process that writes to the log, as a launcher may, and a younger process of another server."""
    carried, pids = server
    with watched() as live, carried.log.open("a") as log:
        sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
        foreign = spawn(sleeper, stdout=log, env=os.environ | {"FP8_SINKS_RUN": "another"}, start_new_session=True)
        unrelated = spawn(sleeper, start_new_session=True)
        wait_for(lambda: psutil.Process(foreign.pid).cmdline() == sleeper)
        assert {p.pid for p in marks.processes(carried)} == set(pids.values())
        later = marks.Marks(**(vars(carried) | {"since": carried.since + 10**9}))
        assert marks.processes(later) == []
        marks.kill(carried, 20)
        assert {p.pid for p in live()} == {foreign.pid, unrelated.pid}
