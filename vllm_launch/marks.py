"""Find and kill the processes of one server by marks that they inherit.

There are three marks, since a process can lose each: a variable in the environment (a program that renames itself may
overwrite it), the session (lost by setsid), and the log as standard output or error (lost by closing both). A live
supervisor needs no marks: all processes of its server are its descendants.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

NONCE_VARIABLE = "FP8_SINKS_RUN"
POLL_S = 0.1


@dataclass(frozen=True)
class Marks:
    """The marks of one server's processes; a process may have lost some of them.

    nonce: the value of NONCE_VARIABLE. session: the pid of its leader, the supervisor. since: the supervisor's start in
    clock ticks since boot; older processes are never ours. log: the file that the processes write to.
    """

    nonce: str
    session: int
    since: int
    log: Path


def of_server(nonce: str, supervisor_pid: int, log: Path) -> Marks:
    """The marks of a server whose supervisor was just started as the leader of a new session."""
    return Marks(nonce, supervisor_pid, _session_and_start(supervisor_pid)[1], log)


def processes(marks: Marks) -> list[psutil.Process]:
    """Every live process that has a mark and does not have another server's nonce."""
    live = []
    for process in psutil.process_iter():
        try:
            if _has_mark(process, marks) and process.status() != psutil.STATUS_ZOMBIE:
                live.append(process)
        except (psutil.Error, OSError):
            continue  # gone, or another user's
    return live


def kill(marks: Marks, seconds: float) -> list[int]:
    """Kill every process that has a mark; returns the pids that are alive after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := processes(marks)) and time.monotonic() < deadline:
        # Again each round: a dying process may just have started another.
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(POLL_S)
    return [process.pid for process in left]


def _has_mark(process: psutil.Process, marks: Marks) -> bool:
    session, start = _session_and_start(process.pid)
    if start < marks.since:
        return False
    if session == marks.session:
        return True
    nonce = process.environ().get(NONCE_VARIABLE)
    return nonce == marks.nonce or (nonce is None and _writes_to(process.pid, marks.log))


def _session_and_start(pid: int) -> tuple[int, int]:
    """The session of a process, and its start in clock ticks since boot."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[3]), int(fields[19])


def _writes_to(pid: int, log: Path) -> bool:
    """Whether the standard output or error of a process is the log."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samefile(f"/proc/{pid}/fd/{number}", log):
                return True
    return False
