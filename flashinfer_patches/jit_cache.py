"""Where FlashInfer keeps the kernels that it compiles, so that kernels of different sources can never meet.

FlashInfer names its own folder by release and GPU alone, and judges by file times what is up to date. Ours is named by
the bytes of the files that the series is about, the release, torch and CUDA, and holds a marker file; FlashInfer gets
it as FLASHINFER_WORKSPACE_BASE.
"""

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pydantic import ValidationError

from flashinfer_patches import engine, files, locking
from flashinfer_patches.errors import Problem, writing
from flashinfer_patches.state import Status
from flashinfer_patches.strict import Strict

ROOT = Path.home() / ".cache" / "fp8-sinks" / "flashinfer"
MARKER = "fp8-sinks-kernels.json"
BUILDING = "building"
BUILT = "built"
BUILD_TIMEOUT_S = 3600.0
FREE_BYTES = 1 << 29
POLL_S = 0.05


class Marker(Strict):
    """Says that a folder is a kernel cache of ours. name: the folder's own."""

    name: str


class Cache(Strict):
    """One kernel cache: its folder, bytes in it, modules that built_once() finished, and whether one was cut off."""

    path: Path
    bytes: int
    built: list[str]
    interrupted: bool


def workspace(root: Path = ROOT, series_root: Path | None = None) -> Path:
    """The folder for the kernels of the installed FlashInfer, below `root`. Makes nothing.

    Raises Problem: "target" where none is installed, "edited" where it is half patched, "cache" where prebuilt
    kernels would hide a patch, "series".
    """
    found = engine.status(root=series_root)
    if found.state == "partial":
        raise Problem(
            "edited",
            f"FlashInfer {found.version} in {found.target} is half patched",
            "finish it: fp8-sinks patch apply, or take it out: fp8-sinks patch revert",
        )
    if reason := hidden(found):
        raise Problem("cache", *reason)
    return root / name(found, _torch())


def name(found: Status, torch: str) -> str:
    """What a cache is called: release and fingerprint of the sources, torch and its CUDA."""
    return f"flashinfer-{found.version}+{found.fingerprint}-{torch}"


def hidden(found: Status) -> tuple[str, str] | None:
    """(what, remedy) if FlashInfer would load prebuilt kernels in place of the patched sources; else None."""
    if found.state != "applied":
        return None
    if importlib.util.find_spec("flashinfer_jit_cache"):
        return (
            "flashinfer-jit-cache is installed: FlashInfer loads its prebuilt kernels in place of the patched sources",
            "pip uninstall flashinfer-jit-cache, or take the patch out: fp8-sinks patch revert",
        )
    if any((found.target / "flashinfer" / "data" / "aot").rglob("*.so")):
        return (
            f"{found.target}/flashinfer/data/aot holds prebuilt kernels, which FlashInfer loads in place of the patched"
            " sources",
            "remove that folder, or take the patch out: fp8-sinks patch revert",
        )
    return None


def make(folder: Path) -> Path:
    """Make a kernel cache and mark it as ours; one that is there stays as it is. Raises Problem."""
    with writing(folder):
        if not _is_ours(folder):
            if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
                raise Problem(
                    "cache", f"{folder} is there already, and is no kernel cache of ours", "choose another folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            new = folder.parent / f".{folder.name}.marker-{os.getpid()}"
            files.write_new(new, Marker(name=folder.name).model_dump_json().encode())
            os.replace(new, folder / MARKER)
    return folder


def built_once(folder: Path, module: str, build: Callable[[], None], timeout_s: float = BUILD_TIMEOUT_S) -> bool:
    """Run build() unless an earlier process finished it for this folder; True if it ran. One builder at a time.

    After a builder that was killed, the compiled files of all modules are suspect and go before the next build, once
    the compilers that it left running have ended. What build() raises is raised, and the next call builds again.
    Raises Problem: "lock", naming the holder, after timeout_s seconds for the lock or for those compilers; "write";
    "cache".
    """
    if not re.fullmatch(r"\w[\w.+-]*", module):
        raise ValueError(f"module {module!r}: expected a letter or digit, then letters, digits and . _ + -")
    stamp, building = folder / BUILT / module, folder / BUILDING
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder, f"builds {module}", timeout_s):
        make(folder)
        _wait_for_compilers(folder, timeout_s)
        with writing(folder):
            if building.exists():
                _empty(folder)
            if stamp.exists():
                return False
            if (free := shutil.disk_usage(folder).free) < FREE_BYTES:
                raise Problem(
                    "write",
                    f"{folder} has {free >> 20} MiB free, a build needs {FREE_BYTES >> 20}",
                    "free some space on that disk, or wipe old kernels: fp8-sinks cache wipe",
                )
            files.write_new(building, module.encode())
        try:
            build()
        except Exception:
            building.unlink()
            raise
        with writing(folder):
            stamp.parent.mkdir(exist_ok=True)
            files.write_new(stamp, b"")
            building.unlink()
    return True


def caches(root: Path = ROOT) -> list[Cache]:
    """Every kernel cache of ours directly below `root`, by name."""
    if not root.is_dir():
        return []
    return [
        Cache(
            path=folder,
            bytes=_size(folder),
            built=sorted(path.name for path in (folder / BUILT).glob("*")),
            interrupted=(folder / BUILDING).exists(),
        )
        for folder in sorted(root.iterdir())
        if _is_ours(folder)
    ]


def wipe(folder: Path) -> int:
    """Remove a kernel cache; returns the bytes freed. Follows no symbolic link.

    Raises Problem: "cache" for a folder that is not ours, "lock" while it is built into, "write".
    """
    if not _is_ours(folder):
        raise Problem(
            "cache",
            f"{folder} is no kernel cache of ours: no {MARKER} with its name, or a link",
            "see what is: fp8-sinks cache list",
        )
    with _lock(folder, "wipes", 0), writing(folder):
        _wait_for_compilers(folder, 0)
        freed = _size(folder)
        _empty(folder)
        # The marker goes last: what is left of an interrupted wipe can be wiped.
        (folder / MARKER).unlink()
        folder.rmdir()
    return freed


def _lock(folder: Path, what: str, timeout_s: float) -> AbstractContextManager[None]:
    """The lock of a cache: beside it, so that it outlives the folder."""
    return locking.held(folder.parent / f".{folder.name}.lock", what, timeout_s)


def _wait_for_compilers(folder: Path, timeout_s: float) -> None:
    """After a killed builder, return when no process works in `folder` any more: compilers outlive it, and write on."""
    deadline = time.monotonic() + timeout_s
    while (folder / BUILDING).exists() and (left := _working_in(folder)):
        if time.monotonic() > deadline:
            raise Problem(
                "lock",
                f"{folder}: a build was cut off, and after {timeout_s:g} s its processes still run: {', '.join(left)}",
                "wait until they have ended, or end them; then run this again",
            )
        time.sleep(POLL_S)


def _working_in(folder: Path) -> list[str]:
    """ "pid N (name)" of this user's processes whose working directory is below `folder`, as ninja's and nvcc's is."""
    place, found = str(folder.resolve()) + os.sep, []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended, or another user's
            if os.readlink(process / "cwd").startswith(place):
                found.append(f"pid {process.name} ({(process / 'comm').read_text().strip()})")
    return found


def _is_ours(folder: Path) -> bool:
    marker, users_own = folder / MARKER, Path.home() / ".cache" / "flashinfer"
    if folder.is_symlink() or marker.is_symlink() or not marker.is_file() or folder.resolve() == users_own.resolve():
        return False
    try:
        return Marker.model_validate_json(marker.read_bytes()).name == folder.name
    except (OSError, ValidationError):
        return False


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == MARKER:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _torch() -> str:
    """ "torch<version>-cuda<version>" as torch's build wrote it down; torch is not imported."""
    spec = importlib.util.find_spec("torch")
    text = (Path(spec.origin).parent / "version.py").read_text() if spec and spec.origin else ""
    found = dict(re.findall(r"""^(__version__|cuda)\b[^=\n]*=\s*["']([^"']+)["']""", text, re.MULTILINE))
    return f"torch{found.get('__version__', 'none')}-cuda{found.get('cuda', 'none')}"
