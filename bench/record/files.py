"""Atomic writes: a temporary file, then a rename."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from flashinfer_patches.errors import Problem


def write(model: BaseModel, path: Path) -> None:
    """Write a record as JSON, atomically."""
    write_text(model.model_dump_json(indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file under a temporary name, then rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@contextmanager
def writing(folder: Path, remedy: str = "choose another --run-dir, or make it writable") -> Iterator[None]:
    """Raise any OSError of the block, which writes into `folder`, as Problem("disk")."""
    try:
        yield
    except OSError as error:
        raise Problem("disk", f"cannot write into {folder}: {error.strerror}", remedy) from error
