"""A lock that dies with its holder and says who holds it."""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from flashinfer_patches.errors import Problem, writing

POLL_S = 0.05
HOLDER = re.compile(rb"(pid \d+ \(.*\) since \d\d:\d\d:\d\d)?")  # what held() writes, or nothing yet
MOST_BYTES = 4096


@contextmanager
def held(path: Path, what: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; `what` tells others what for. The file is gone afterwards.

    Raises Problem: "lock", naming the holder, if it is not to be had within timeout_s seconds, or naming the file
    where it holds what no lock of ours does; "write" where the file cannot be made, or `path` is anything but a plain
    file of one name. A killed holder leaves the file, but not the lock.
    """
    deadline = time.monotonic() + timeout_s
    while (handle := _taken(path)) is None:
        if time.monotonic() > deadline:
            raise Problem(
                "lock",
                f"{path} is still held after {timeout_s:g} s by {_holder(path)}",
                "wait until that has ended, or end it; then run this again",
            )
        time.sleep(POLL_S)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} ({what}) since {datetime.now():%H:%M:%S}".encode())
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(handle)


def is_free_to_take(path: Path) -> bool:
    """Whether held() would overwrite nobody's text: no plain file is there, or an empty one, or a holder's."""
    try:
        text = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    except OSError:
        return False
    return HOLDER.fullmatch(text) is not None


def _taken(path: Path) -> int | None:
    """An open, locked descriptor of the file that `path` names now; None while somebody else has it."""
    with writing(path):
        try:
            # Not blocking: it may be a pipe.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _no_lock(path) from error
            raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _no_lock(path)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder removes the file: a lock on a removed one excludes nobody.
        if status.st_ino == path.lstat().st_ino:
            if not HOLDER.fullmatch(os.pread(handle, MOST_BYTES, 0)):
                raise Problem(
                    "lock",
                    f"{path} holds what no lock file of ours does; expected an empty file, or none",
                    "see what it is for, and rename it; then run this again",
                )
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _no_lock(path: Path) -> Problem:
    return Problem(
        "write",
        f"{path} is a link, or no plain file; expected a lock file of ours, or none",
        "see what it is for, and remove it; then run this again",
    )


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace") or "another process"
    return "another process"
