"""Keep one server and everything it starts, and end all of it when the launcher goes.

`python -m vllm_launch.supervisor LOG GRACE_S -- COMMAND...` runs COMMAND in a session of its own. Standard input
is a pipe from the launcher: its end (the launcher closed it, or died by any signal) ends the whole tree, TERM
first and KILL after GRACE_S seconds. As child subreaper it inherits every process that loses its parent, so
none escapes. Exit code: the command's own (128 + signal if killed), 0 if it was asked to end,
70 if something could not be ended.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

POLL_S = 0.1
KILL_DEADLINE_S = 10.0
LEFTOVER_EXIT = 70
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    log_path, grace_s, separator, *command = argv
    if separator != "--" or not command:
        raise SystemExit("usage: python -m vllm_launch.supervisor LOG GRACE_S -- COMMAND...")
    asked_to_end = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(True))
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")

    def in_child() -> None:
        # If this supervisor is killed, the server still gets a TERM.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        for restored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(restored, signal.SIG_DFL)

    with open(log_path, "ab") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=in_child,
        )
    while server.poll() is None and not asked_to_end and not _launcher_gone():
        reap_orphans(server)
    ended_itself = server.poll()
    left = end_tree(server, float(grace_s))
    if left:
        print(f"supervisor: could not end {left}", file=sys.stderr)
        return LEFTOVER_EXIT
    if ended_itself is None:
        return 0
    return ended_itself if ended_itself >= 0 else 128 - ended_itself


def _launcher_gone() -> bool:
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], POLL_S)
    return bool(readable) and os.read(sys.stdin.fileno(), 1) == b""


def reap_orphans(server: subprocess.Popen) -> None:
    """Collect adopted processes that have ended, but leave the server's own exit code to Popen."""
    for child in psutil.Process().children():
        if child.pid != server.pid and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, os.WNOHANG)


def end_tree(server: subprocess.Popen, grace_s: float) -> list[int]:
    """TERM every descendant, KILL what is left after grace_s seconds; returns the pids that would not end."""
    _signal_all(server, signal.SIGTERM)
    if _wait_until_alone(server, grace_s):
        return []
    deadline = time.monotonic() + KILL_DEADLINE_S
    while time.monotonic() < deadline:
        # Again each round: what is dying may still have been starting something.
        _signal_all(server, signal.SIGKILL)
        if _wait_until_alone(server, 2 * POLL_S):
            return []
    return [process.pid for process in _descendants(server)]


def _descendants(server: subprocess.Popen) -> list[psutil.Process]:
    server.poll()
    reap_orphans(server)
    return psutil.Process().children(recursive=True)


def _signal_all(server: subprocess.Popen, number: int) -> None:
    for process in _descendants(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _wait_until_alone(server: subprocess.Popen, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _descendants(server):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
