"""The supervisor with real processes: whatever ends the launcher or the server, nothing is left."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kernels_tests.processes import alive, wait_for

# A server that starts a child which ignores TERM, HUP and INT, and one that leaves its session and loses its parent.
STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1]])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
            time.sleep(600)
        os._exit(0)
time.sleep(600)
"""
LAUNCHER = """
import signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGHUP):  # a test run behind nohup or & has them ignored
    signal.signal(number, signal.SIG_DFL)
supervisor = subprocess.Popen(
    [sys.executable, "-m", "vllm_launch.supervisor", *sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True)
print(supervisor.pid, flush=True)
sys.exit(supervisor.wait())
"""
TREE = 3  # the server, its child, its runaway grandchild


def launch(tmp_path, *, grace_s=0.5):
    """Start launcher -> supervisor -> stubborn tree; returns (launcher, supervisor pid, pids of the tree)."""
    script, pids = tmp_path / "stubborn.py", tmp_path / "pids"
    script.write_text(STUBBORN)
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path / "log"), str(grace_s), "--"]
    launcher = subprocess.Popen(
        [*command, sys.executable, str(script), str(pids), "parent"], stdout=subprocess.PIPE, text=True
    )
    supervisor = int(launcher.stdout.readline())
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == TREE)
    return launcher, supervisor, [int(pid) for pid in pids.read_text().split()]


def all_gone(*pids):
    return not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV])
def test_a_launcher_that_dies_by_any_signal_leaves_nothing(tmp_path, number):
    launcher, supervisor, tree = launch(tmp_path)
    launcher.send_signal(number)
    assert launcher.wait(timeout=20) == -number
    wait_for(lambda: all_gone(supervisor, *tree))


def test_a_server_that_is_killed_takes_its_children_along(tmp_path):
    launcher, supervisor, tree = launch(tmp_path)
    os.kill(tree[0], signal.SIGKILL)
    assert launcher.wait(timeout=20) == 128 + signal.SIGKILL
    wait_for(lambda: all_gone(supervisor, *tree))


def test_terminating_the_supervisor_ends_the_tree(tmp_path):
    launcher, supervisor, tree = launch(tmp_path)
    os.kill(supervisor, signal.SIGTERM)
    assert launcher.wait(timeout=20) == 0
    wait_for(lambda: all_gone(supervisor, *tree))


def test_a_server_that_heeds_term_is_not_killed(tmp_path):
    marker = tmp_path / "clean"
    polite = f"import signal,sys,time; signal.signal(15, lambda *_: (open({str(marker)!r}, 'w'), sys.exit(0)));"
    polite += f"open({str(tmp_path / 'up')!r}, 'w'); time.sleep(600)"
    supervisor = subprocess.Popen(
        [
            *(sys.executable, "-m", "vllm_launch.supervisor", str(tmp_path / "log"), "20", "--"),
            sys.executable,
            "-c",
            polite,
        ],
        stdin=subprocess.PIPE,
    )
    wait_for((tmp_path / "up").exists)
    started = time.monotonic()
    supervisor.stdin.close()
    assert supervisor.wait(timeout=20) == 0
    assert marker.exists()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.abort()", 128 + 6)])
def test_the_exit_code_is_the_servers_own_and_its_output_is_in_the_log(tmp_path, code, expected):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "vllm_launch.supervisor", str(log), "1", "--"]
    supervisor = subprocess.Popen(
        [*command, sys.executable, "-c", f"print('hello', flush=True); {code}"], stdin=subprocess.PIPE
    )
    assert supervisor.wait(timeout=30) == expected
    assert "hello" in log.read_text()
