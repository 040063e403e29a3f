"""Write files: whole or not at all, and a failure to write as a Problem."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashinfer_patches.errors import Problem


def replace(path: Path, data: bytes) -> None:
    """Write and sync a file under a temporary name, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_new(temporary, data)
    os.replace(temporary, path)


def write_new(path: Path, data: bytes) -> None:
    """Write and sync a new file in place of an existing one; the target of a link is unchanged."""
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:  # fails on a link created since then
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise an OSError of the block as Problem("disk"), with the name of the file or else `folder`."""
    try:
        yield
    except OSError as error:
        raise Problem(
            "disk",
            f"cannot write {error.filename or folder}: {error.strerror}",
            "run this again as the owner of that folder and with free disk space, or choose another folder",
        ) from error
