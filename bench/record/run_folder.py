"""A run's folder: its request, its lock and its caches. What is not provably ours is never removed."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from bench.record.envelope import Wiped
from bench.record.files import write, write_text
from flashinfer_patches import locking
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.strict import Strict

REQUEST = "request.json"
LOCK = ".lock"
CACHE = "cache"
CACHE_MARK = "fp8-sinks-cache"
CACHE_MARK_TEXT = "JIT caches of a run of fp8-sinks: all that is in this folder is removed before a cold start.\n"


class Request(Strict):
    """What a run measures; saved in its folder, so that --resume does the same.

    suite: None is the model's own. grid: fields of the suite's grid that the command line replaces. slo: limits of
    goodput, in ms. quick: only a first look. url, reference_url: of an external server and of its reference, without
    /v1.
    """

    kind: str
    profiles: list[str]
    model: str | None
    suite: str | None = None
    overrides: list[str]
    grid: dict[str, int | list[int]] = Field(default_factory=dict)
    slo: dict[str, float] = Field(default_factory=dict)
    quick: bool = False
    url: str | None = None
    reference_url: str | None = None


R = TypeVar("R", bound=Strict)


class _OfKind(BaseModel):
    kind: str


def read_request(folder: Path, kind: str, model: type[R] = Request) -> R:
    """The request of a run folder; raises Problem("file") for a folder that has none, or a run of another kind."""
    try:
        content = (folder / REQUEST).read_bytes()
        if (actual := _OfKind.model_validate_json(content).kind) != kind:
            command = shlex.join(["fp8-sinks", "bench", actual, "--resume", str(folder)])
            raise Problem("file", f"{folder} holds a run of `bench {actual}`", f"{command}; or name another folder")
        return model.model_validate_json(content)
    except (OSError, ValidationError) as error:
        raise Problem(
            "file",
            f"{folder} is no run folder of this bench: cannot read {REQUEST}",
            "name a folder in runs/, or for --run-dir a new or an empty one",
        ) from error


def check(folder: Path, request: Strict) -> None:
    """Raise Problem unless `folder` is absent, empty, or that of a run of the same request; writes nothing."""
    _check_lock(folder / LOCK)
    try:
        content = [path for path in folder.iterdir() if not _is_transient(path.name)] if folder.exists() else []
    except OSError as error:
        raise Problem("disk", f"cannot read {folder}: {error.strerror}", "choose another --run-dir") from error
    if content and (changed := _changed(read_request(folder, request.kind, type(request)), request)):
        raise Problem(
            "file",
            f"{folder} holds a run with another request: other {', '.join(changed)}",
            f"go on with it: --resume {folder}; or choose another --run-dir",
        )
    _check_cache(folder / CACHE)


def _changed(earlier: Strict, request: Strict) -> list[str]:
    """Fields that differ between two requests of one model."""
    return [name for name in type(request).model_fields if getattr(earlier, name) != getattr(request, name)]


def _is_transient(name: str) -> bool:
    """Whether a name is that of the lock, or of a request that was only partly written."""
    return name == LOCK or name.startswith(f".{REQUEST}.")


def broken_step(path: Path) -> Problem:
    """The Problem of a step's file that cannot be read; its run folder is the nearest one with a request."""
    run = next((folder for folder in path.parents if (folder / REQUEST).exists()), path.parent)
    return Problem("file", f"{path} cannot be read as a finished step", f"delete that file, then --resume {run}")


@contextmanager
def opened(folder: Path, request: Strict) -> Iterator[None]:
    """Create `folder` for `request`, or reopen it, with a cache folder, and hold its lock while the block runs.

    Raises what check() does, Problem("disk") where it cannot write, and Problem("lock"), naming the holder.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_lock(folder / LOCK)
    with locking.held(folder / LOCK, f"bench {request.kind}", timeout_s=0):
        check(folder, request)
        with writing(folder):
            if not (folder / REQUEST).exists():
                write(request, folder / REQUEST)
        own_cache(folder / CACHE)
        yield


def own_cache(cache: Path) -> None:
    """Create a cache folder with our mark; raises Problem for an existing one without it, unless it is empty."""
    _check_cache(cache)
    with writing(cache):
        cache.mkdir(exist_ok=True)
        write_text(CACHE_MARK_TEXT, cache / CACHE_MARK)


def wipe_cache(cache: Path) -> Wiped:
    """Empty a cache folder that has our mark, but for the mark; counts what was removed. Follows no symbolic link."""
    if not _is_ours(cache):
        raise _not_ours(cache)
    with writing(cache):
        files = cached_files(cache)
        wiped = Wiped(files=len(files), bytes=sum(path.lstat().st_size for path in files))
        for path in cache.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != CACHE_MARK:
                path.unlink()
    return wiped


def cached_files(cache: Path) -> list[Path]:
    """Every file in a run's cache folder but our mark."""
    return [path for path in cache.rglob("*") if path.is_file() and path != cache / CACHE_MARK]


def _check_lock(lock: Path) -> None:
    if not locking.is_free_to_take(lock):
        message = f"{lock} is not a lock file of ours; a run would overwrite it"
        raise Problem("file", message, "choose another --run-dir, or move that file away")


def _check_cache(cache: Path) -> None:
    absent = not cache.exists() and not cache.is_symlink()
    if absent or _is_ours(cache) or (cache.is_dir() and not cache.is_symlink() and not any(cache.iterdir())):
        return
    raise _not_ours(cache)


def _is_ours(cache: Path) -> bool:
    mark = cache / CACHE_MARK
    return not cache.is_symlink() and not mark.is_symlink() and mark.is_file()


def _not_ours(cache: Path) -> Problem:
    reason = "is a symbolic link" if cache.is_symlink() else f"was not made by a run: it has no {CACHE_MARK}"
    return Problem(
        "file", f"{cache} {reason}; a run removes what its cache folder holds", "choose another --run-dir, a new folder"
    )
