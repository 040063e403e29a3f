"""The supervisor with real processes: however the launcher or the server ends, no process is left."""

import os
import signal
import subprocess
import sys

import pytest

from kernels_tests.processes import scaled, spawn, wait_for, watched

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


@pytest.fixture
def launch(tmp_path):
    """A stubborn server: launcher, supervisor's pid, pids of the tree, a function that lists the live processes."""
    script, pids = tmp_path / "stubborn.py", tmp_path / "pids"
    script.write_text(STUBBORN)
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path / "log"), "0.5", "--"]
    with watched() as live:
        launcher = spawn(
            [*command, sys.executable, str(script), str(pids), "parent"], stdout=subprocess.PIPE, text=True
        )
        supervisor = int(launcher.stdout.readline())
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == TREE)
        yield launcher, supervisor, [int(pid) for pid in pids.read_text().split()], live


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV])
def test_a_launcher_that_dies_by_any_signal_leaves_nothing(launch, number):
    launcher, _, _, live = launch
    launcher.send_signal(number)
    assert launcher.wait(timeout=scaled(20)) == -number
    wait_for(lambda: not live())


def test_a_server_that_is_killed_takes_its_children_along(launch):
    launcher, _, tree, live = launch
    os.kill(tree[0], signal.SIGKILL)
    assert launcher.wait(timeout=scaled(20)) == 128 + signal.SIGKILL
    wait_for(lambda: not live())


def test_terminating_the_supervisor_ends_the_tree(launch):
    launcher, supervisor, _, live = launch
    os.kill(supervisor, signal.SIGTERM)
    assert launcher.wait(timeout=scaled(20)) == 0
    wait_for(lambda: not live())


@pytest.fixture
def supervise(tmp_path):
    """A function that runs Python code as a supervised server; grace_s: seconds from TERM to KILL."""
    with watched():
        command = [sys.executable, "-m", "vllm_launch.supervisor", str(tmp_path / "log")]
        yield lambda grace_s, code: spawn([*command, grace_s, "--", sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_a_server_that_handles_term_is_not_killed(tmp_path, supervise):
    marker = tmp_path / "clean"
    polite = f"import signal,sys,time; signal.signal(15, lambda *_: (open({str(marker)!r}, 'w'), sys.exit(0)));"
    polite += f"open({str(tmp_path / 'up')!r}, 'w'); time.sleep(600)"
    supervisor = supervise("3600", polite)
    wait_for((tmp_path / "up").exists)
    supervisor.stdin.close()
    assert supervisor.wait(timeout=scaled(20)) == 0
    assert marker.exists()


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.abort()", 128 + 6)])
def test_the_exit_code_is_the_servers_own_and_its_output_is_in_the_log(tmp_path, supervise, code, expected):
    supervisor = supervise("1", f"print('hello', flush=True); {code}")
    assert supervisor.wait(timeout=scaled(30)) == expected
    assert "hello" in (tmp_path / "log").read_text()


def test_the_server_has_no_input_and_the_signals_of_a_fresh_process(tmp_path, supervise):
    """The server does not inherit the supervisor's signal handlers."""
    code = "import os, signal, sys; print(os.readlink('/proc/self/fd/0'), sys.stdin.read() == '')\n"
    code += "print([signal.getsignal(number).name for number in (signal.SIGTERM, signal.SIGHUP)])"
    assert supervise("1", code).wait(timeout=scaled(30)) == 0
    assert (tmp_path / "log").read_text() == "/dev/null True\n['SIG_DFL', 'SIG_DFL']\n"
