"""Start, watch and end real processes in tests.

This shares no code with the product: a test is a child subreaper, so every process started below it stays its
descendant, even if that process leaves its session, loses its parents, wipes its environment or closes its files.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
CORES = 2  # limits are given for this many idle cores
libc = ctypes.CDLL(None)
spawned = set()  # pids of processes that `spawn` has started: their exit codes are for Popen


def scaled(seconds):
    """Scale a limit for two idle cores to the cores and the load of this machine."""
    cores = len(os.sched_getaffinity(0))
    return seconds * max(1.0, CORES / cores, os.getloadavg()[0] / cores)


def wait_for(condition, seconds=20.0):
    """Poll until `condition()` is true; fail after `seconds`, scaled by the load meanwhile."""
    started, limit = time.monotonic(), 0.0
    while not condition():
        limit = max(limit, scaled(seconds))
        assert time.monotonic() - started < limit, f"timed out after {limit:.0f} s"
        time.sleep(0.05)


def spawn(command, **options):
    """Start a process that is killed when this test process dies, by any signal."""
    parent = os.getpid()

    def die_with_parent():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where a shell runs the tests in the background
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was killed before the line above
            os._exit(1)

    process = subprocess.Popen(command, preexec_fn=die_with_parent, **options)
    spawned.add(process.pid)
    return process


def output(process, seconds):
    """Wait for the end of `process`; return its standard output and error. `seconds` as in wait_for."""
    ends = []

    def ended():
        with contextlib.suppress(subprocess.TimeoutExpired):
            ends.append(process.communicate(timeout=1))
        return ends

    wait_for(ended, seconds)
    return ends[0]


def completed(command, seconds, **options):
    """Like subprocess.run with captured text, but with a scaled limit, and all descendants are killed."""
    with watched():
        process = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        out, err = output(process, seconds)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextmanager
def watched():
    """Yields a function that lists the live processes started since; kills and reaps what is left at the end."""
    previous = ctypes.c_int()
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(previous), 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(psutil.Process().children(recursive=True))

    def live():
        return [p for p in psutil.Process().children(recursive=True) if p not in before and alive(p.pid)]

    try:
        yield live
    finally:
        while left := live():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)
        reap_adopted(before)
        libc.prctl(PR_SET_CHILD_SUBREAPER, previous.value, 0, 0, 0)


def reap_adopted(before):
    """Reap the ended children that were neither there before nor spawned: their own parents died first."""
    for process in psutil.Process().children():
        if process not in before and process.pid not in spawned and not alive(process.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
