"""Steps of a run: each saves its value in a file, from which a resumed run loads it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bench.record.files import write_json
from bench.record.run_folder import broken_step
from flashinfer_patches.files import writing

T = TypeVar("T")


def step(path: Path, kind: type[T], action: Callable[[], T]) -> T:
    """Load `path`, or run `action` and save its value there; raises Problem("disk")."""
    if path.exists():
        return load(path, kind)
    value = action()
    save(path, kind, value)
    return value


def save(path: Path, kind: type[T], value: T) -> None:
    """Write a step's value; raises Problem("disk")."""
    with writing(path.parent):
        write_json(TypeAdapter(kind).dump_json(value, indent=1).decode(), path)


def load(path: Path, kind: type[T]) -> T:
    """Load a finished step; raises Problem("file") for one that cannot be read."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise broken_step(path) from error
