"""Compiled kernels on disk, in folders that no other user can write to, since their content is run.

A cache is a folder directly below root() with our marker in it. A kernel is a file `<32 hex digits>.cubin`: the binary,
followed by its sha256, which reveals a file that is cut off or damaged.
"""

import hashlib
import os
import re
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "FP8_SINKS_KERNEL_CACHE"
MARKER = "fp8-sinks-kernels"
# Kernels and unfinished ones; older versions left locks and <digest>.<process id>
NAMES = re.compile(r"[0-9a-f]{32}\.(cubin|lock|\d+)|\.new-.*\.cubin")
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Cache:
    """One cache: its folder, the bytes in it, and the names of its kernels."""

    path: Path
    bytes: int
    kernels: list[str]


def root() -> Path:
    """Return $FP8_SINKS_KERNEL_CACHE, which `fp8-sinks serve` sets, or ~/.cache/fp8-sinks/lowp."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "fp8-sinks" / "lowp")


def load(path: Path) -> bytes | None:
    """Load the kernel in the file `path`; None for a missing or damaged file.

    Raises RuntimeError where the file or its folder is another user's or writable by others, OSError where it cannot
    be read or is a symbolic link.
    """
    try:
        _check_ours(path.parent, path.parent.stat())
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with open(handle, "rb") as file:
        _check_ours(path, os.fstat(handle))
        data = file.read()
    kernel, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    return kernel if hashlib.sha256(kernel).digest() == digest else None


def store(path: Path, kernel: bytes) -> None:
    """Write a kernel to the file `path`, atomically; its folder is made and marked as ours.

    Raises RuntimeError where the folder is another user's, writable by others or holds other files, OSError where it
    cannot be written.
    """
    _make(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-", suffix=".cubin")
    try:
        with open(handle, "wb") as file:
            file.write(kernel + hashlib.sha256(kernel).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def caches(folder: Path) -> list[Cache]:
    """List every cache of ours directly below `folder`, by name."""
    if not folder.is_dir():
        return []
    return [
        Cache(
            path=path,
            bytes=sum(file.lstat().st_size for file in path.iterdir()),
            kernels=sorted(file.stem for file in path.glob("[0-9a-f]*.cubin")),
        )
        for path in sorted(folder.iterdir())
        if _is_ours(path)
    ]


def wipe(folder: Path) -> int:
    """Remove the files of a cache, and its folder if that leaves it empty; return the bytes freed.

    Raises ValueError for a folder that is no cache of ours, OSError.
    """
    if not _is_ours(folder):
        raise ValueError(f"{folder} is no kernel cache of ours: no {MARKER}, or another user's")
    freed = 0
    for file in folder.iterdir():
        if NAMES.fullmatch(file.name):
            with suppress(FileNotFoundError):  # renamed by a process that builds it
                freed += file.lstat().st_size
                file.unlink()
    if os.listdir(folder) == [MARKER]:  # removed last, so that an interrupted wipe can be repeated
        (folder / MARKER).unlink()
        folder.rmdir()
    return freed


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_ours(folder, folder.stat())
    foreign = [name for name in sorted(os.listdir(folder)) if not NAMES.fullmatch(name)]
    if MARKER in foreign:
        return
    if foreign:
        raise RuntimeError(
            f"{folder} holds {foreign[0]}; expected a folder for compiled kernels alone: name another by {VARIABLE}"
        )
    with suppress(FileExistsError):  # another process was faster
        (folder / MARKER).touch(mode=0o600, exist_ok=False)


def _is_ours(folder: Path) -> bool:
    with suppress(OSError):
        marker = (folder / MARKER).lstat()
        return not folder.is_symlink() and stat.S_ISREG(marker.st_mode) and marker.st_uid == os.geteuid()
    return False


def _check_ours(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeError(
            f"{path} is user {status.st_uid}'s with mode {stat.filemode(status.st_mode)}; expected one of user "
            f"{os.geteuid()}, writable by no other, since what it holds is run: remove it, or name another folder by "
            f"{VARIABLE}"
        )
