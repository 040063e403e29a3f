"""A server that ignores signals: `python hostile.py FOLDER` writes each process's pid into FOLDER, by its role.

All ignore TERM, HUP and INT. `api`, `engine` and `worker` wipe their environment, as setproctitle does. `runaway` does
so too, and leaves its session and its parents. `silent` leaves its session and closes the log. Only `api` ends by
itself: when its engine does.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

ROLES = ("api", "engine", "worker", "runaway", "silent")


def wipe_environment():
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start, env_end
    ctypes.memset(start, 0, end - start)


def report(folder, role):
    (folder / f".{role}").write_text(str(os.getpid()))
    (folder / f".{role}").rename(folder / role)


def stay(folder, role):
    report(folder, role)
    time.sleep(600)
    os._exit(0)


def main(folder):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        os.close(1)
        os.close(2)
        stay(folder, "silent")
    wipe_environment()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            stay(folder, "runaway")
        os._exit(0)
    engine = os.fork()
    if engine == 0:
        if os.fork() == 0:
            stay(folder, "worker")
        stay(folder, "engine")
    report(folder, "api")
    os.waitpid(engine, 0)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
