"""Lock files that name their holder: filelock, with the holder's process and action as the file's text."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing

HOLDER = re.compile(rb"(pid \d+ \(.*\) since \d\d:\d\d:\d\d)?")  # empty until the holder has written it
MAX_HOLDER_BYTES = 4096


@contextmanager
def held(path: Path, action: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, then remove it; `action` tells waiting processes what it does.

    Raises Problem: "lock" if another process still holds it after timeout_s seconds, or if the file has other text than
    a holder's; "disk" if it cannot be created, is a link or no regular file. The lock of a killed process is free.
    """

    def write_holder(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _no_regular_file(path)
        if not HOLDER.fullmatch(os.pread(descriptor, MAX_HOLDER_BYTES, 0)):
            raise _no_lock_file(path)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()} ({action}) since {datetime.now():%H:%M:%S}".encode())

    if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
        raise _no_regular_file(path)
    if not is_free_to_take(path):  # before filelock opens it: some of its releases truncate what they lock
        raise _no_lock_file(path)
    lock = FileLock(path, timeout=timeout_s, fallback_to_soft=False, on_acquired=write_holder)
    with writing(path):
        try:
            acquired = lock.acquire()
        except Timeout as error:
            raise Problem(
                "lock",
                f"{path}: lock held by another process after {timeout_s:g} s: {_holder(path)}",
                "wait until that process has ended, or end it; then run this again",
            ) from error
    with acquired:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the release: a process that waits opens a new file


def is_free_to_take(path: Path) -> bool:
    """Whether held() overwrites no text but a holder's: `path` is absent, no regular file, empty or a lock file."""
    try:
        text = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    except OSError:
        return False
    return HOLDER.fullmatch(text) is not None


def _no_lock_file(path: Path) -> Problem:
    return Problem(
        "lock",
        f"{path} is no lock file: expected an empty or absent file, or the text of a lock's holder",
        "move that file away, then run this again",
    )


def _no_regular_file(path: Path) -> Problem:
    return Problem(
        "disk",
        f"{path} is a link or no regular file; expected a lock file, or none",
        "remove it, then run this again",
    )


def _holder(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace") or "unknown"
    return "unknown"
