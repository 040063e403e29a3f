"""Supervise one server and all processes that it starts, and end them when the launcher exits.

`python -m vllm_launch.supervisor LOG GRACE_S -- COMMAND...` runs COMMAND with its output appended to LOG. Standard
input is a pipe from the launcher: when it closes (by the launcher, or because it died by any signal), the whole process
tree is ended, with TERM first and KILL after GRACE_S seconds.

The supervisor is two processes, outer and inner; COMMAND is the child of the inner. Both read the pipe, and both are
child subreapers: they inherit every process below them that loses its parent, so none escapes. If any two of launcher,
supervisors and server are killed at once, the remaining supervisor or server still has the others below it.
Exit code: the command's own (128 + signal if killed), 0 if it was told to end, 70 if a process could not be ended.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable

import psutil

POLL_S = 0.1
KILL_DEADLINE_S = 10.0
LEFTOVER_EXIT = 70
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    log_path, grace_s, separator, *command = argv
    if separator != "--" or not command:
        raise SystemExit("usage: python -m vllm_launch.supervisor LOG GRACE_S -- COMMAND...")
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)

    def supervise(run: Callable[[], int]) -> int:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        child = _fork(run)
        while _exit_code(child) is None and not terminated and not _launcher_gone():
            reap_orphans(child)
        exit_code = _exit_code(child)
        left = end_tree(child, float(grace_s))
        if left:
            print(f"supervisor: could not end {left}", file=sys.stderr)
            return LEFTOVER_EXIT
        return 0 if exit_code is None else exit_code

    return supervise(lambda: supervise(lambda: _execute(command, log_path)))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _fork(run: Callable[[], int]) -> int:
    """Fork a child that exits with the result of `run`, and gets TERM if this process is killed; returns its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent was killed before the line above
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(run())
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _execute(command: list[str], log_path: str) -> int:
    """Replace this process by the command: no input, output to the log, default signal handlers."""
    for number in (signal.SIGTERM, *IGNORED, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    # Its own process group, in case it signals its group; the session stays the supervisor's, as a mark.
    os.setpgid(0, 0)
    with open(os.devnull, "rb") as nothing, open(log_path, "ab") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.execvp(command[0], command)


def _exit_code(child: int) -> int | None:
    """The child's exit code, 128 + signal if it was killed, None while it runs. Does not reap the child."""
    ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _launcher_gone() -> bool:
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], POLL_S)
    return bool(readable) and os.read(sys.stdin.fileno(), 1) == b""


def reap_orphans(child: int) -> None:
    """Reap adopted processes that have ended, but not the child."""
    for process in psutil.Process().children():
        if process.pid != child and process.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(process.pid, os.WNOHANG)


def end_tree(child: int, grace_s: float) -> list[int]:
    """TERM every descendant, KILL those alive after grace_s seconds; returns the pids that did not end."""
    _signal_all(child, signal.SIGTERM)
    if _wait_until_alone(child, grace_s):
        return []
    deadline = time.monotonic() + KILL_DEADLINE_S
    while time.monotonic() < deadline:
        # Again each round: a dying process may just have started another.
        _signal_all(child, signal.SIGKILL)
        if _wait_until_alone(child, 2 * POLL_S):
            return []
    return [process.pid for process in _descendants(child)]


def _descendants(child: int) -> list[psutil.Process]:
    """Every process below this one, without the child once it has ended."""
    reap_orphans(child)
    ended = _exit_code(child) is not None
    return [process for process in psutil.Process().children(recursive=True) if not (ended and process.pid == child)]


def _signal_all(child: int, number: int) -> None:
    for process in _descendants(child):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _wait_until_alone(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _descendants(child):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
