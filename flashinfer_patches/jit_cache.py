"""Folders for the kernels that FlashInfer compiles, one for each set of sources.

FlashInfer names its own folder by release and GPU, and finds outdated kernels by file times. Ours is named by the
content of the series' files, the release, torch and CUDA, and has a marker file; FlashInfer gets it as
FLASHINFER_WORKSPACE_BASE.
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
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
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
    """The content of the marker file of a kernel cache of ours. name: that of the folder."""

    name: str


class Cache(Strict):
    """A kernel cache. built: the modules that built_once() finished. interrupted: whether a build was interrupted."""

    path: Path
    bytes: int
    built: list[str]
    interrupted: bool


def workspace(root: Path = ROOT, series_root: Path | None = None) -> Path:
    """Return the folder for the kernels of the installed FlashInfer, below `root`. Creates nothing.

    Raises Problem: "target" without FlashInfer, "edited" if it is partially patched, "cache" if prebuilt kernels would
    hide a patch, "series".
    """
    status = engine.status(root=series_root)
    if status.state == "partial":
        raise Problem(
            "edited",
            f"FlashInfer {status.version} in {status.target} is partially patched",
            "finish the patch: fp8-sinks patch apply; or revert it: fp8-sinks patch revert",
        )
    if reason := hidden(status):
        raise Problem("cache", *reason)
    return root / name(status, _torch())


def name(status: Status, torch: str) -> str:
    """Return the name of a cache: release and fingerprint of the sources, torch and its CUDA."""
    return f"flashinfer-{status.version}+{status.fingerprint}-{torch}"


def hidden(status: Status) -> tuple[str, str] | None:
    """Return (message, remedy) if FlashInfer would load prebuilt kernels instead of the patched sources; else None."""
    if status.state != "applied":
        return None
    if importlib.util.find_spec("flashinfer_jit_cache"):
        return (
            "flashinfer-jit-cache is installed: FlashInfer loads its prebuilt kernels instead of the patched sources",
            "pip uninstall flashinfer-jit-cache, or revert the patch: fp8-sinks patch revert",
        )
    if any((status.target / "flashinfer" / "data" / "aot").rglob("*.so")):
        return (
            f"{status.target}/flashinfer/data/aot has prebuilt kernels, which FlashInfer loads instead of the patched"
            " sources",
            "remove that folder, or revert the patch: fp8-sinks patch revert",
        )
    return None


def make(folder: Path) -> Path:
    """Create a kernel cache with our marker, unless it exists. Raises Problem: "cache" for another folder."""
    with writing(folder):
        if not _is_ours(folder):
            if folder.is_symlink() or (folder.exists() and any(folder.iterdir())):
                raise Problem("cache", f"{folder} exists and is no kernel cache of ours", "choose another folder")
            folder.mkdir(parents=True, exist_ok=True)
            # Beside the folder: an interruption leaves that empty.
            new = folder.parent / f".{folder.name}.marker-{os.getpid()}"
            files.write_new(new, Marker(name=folder.name).model_dump_json().encode())
            os.replace(new, folder / MARKER)
    return folder


def built_once(folder: Path, module: str, build: Callable[[], None], timeout_s: float = BUILD_TIMEOUT_S) -> bool:
    """Run build(), one process at a time, unless it has finished for this folder before; return whether it ran.

    After a killed builder all compiled files may be incomplete: they are removed before the next build, once the
    compilers that it left running have ended. An exception of build() is raised, and the next call builds again.
    Raises Problem: "lock", with the holder, after timeout_s seconds of waiting for the lock or for those compilers;
    "disk"; "cache".
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
                    "disk",
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
    """List the kernel caches of ours directly below `root`, by name."""
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
    """Remove a kernel cache and return the bytes freed. Follows no symbolic link.

    Raises Problem: "cache" for a folder that is not ours, "lock" during a build, "disk".
    """
    if not _is_ours(folder):
        raise Problem(
            "cache",
            f"{folder} is no kernel cache of ours: a link, or without {MARKER} of its name",
            "list the caches: fp8-sinks cache list",
        )
    with _lock(folder, "wipes", 0), writing(folder):
        _wait_for_compilers(folder, 0)
        freed = _size(folder)
        _empty(folder)
        # The marker is removed last, so that an interrupted wipe can be repeated.
        (folder / MARKER).unlink()
        folder.rmdir()
    return freed


def _lock(folder: Path, action: str, timeout_s: float) -> AbstractContextManager[None]:
    """Lock a cache, with a file beside its folder, since a wipe removes that."""
    return locking.held(folder.parent / f".{folder.name}.lock", action, timeout_s)


def _wait_for_compilers(folder: Path, timeout_s: float) -> None:
    """Wait for the compilers of a killed builder, which outlive it and go on writing into `folder`."""
    deadline = time.monotonic() + timeout_s
    while (folder / BUILDING).exists() and (running := _processes_in(folder)):
        if time.monotonic() > deadline:
            raise Problem(
                "lock",
                f"{folder}: compilers of an interrupted build still run after {timeout_s:g} s: {', '.join(running)}",
                "wait until they have ended, or end them; then run this again",
            )
        time.sleep(POLL_S)


def _processes_in(folder: Path) -> list[str]:
    """List "pid N (name)" of this user's processes that work below `folder`, as ninja and nvcc do."""
    prefix, processes = str(folder.resolve()) + os.sep, []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended, or another user's
            if os.readlink(process / "cwd").startswith(prefix):
                processes.append(f"pid {process.name} ({(process / 'comm').read_text().strip()})")
    return processes


def _is_ours(folder: Path) -> bool:
    marker, users_cache = folder / MARKER, Path.home() / ".cache" / "flashinfer"
    if folder.is_symlink() or marker.is_symlink() or not marker.is_file() or folder.resolve() == users_cache.resolve():
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
    """Return "torch<version>-cuda<version>" from torch's build metadata, without importing torch."""
    spec = importlib.util.find_spec("torch")
    text = (Path(spec.origin).parent / "version.py").read_text() if spec and spec.origin else ""
    versions = dict(re.findall(r"""^(__version__|cuda)\b[^=\n]*=\s*["']([^"']+)["']""", text, re.MULTILINE))
    return f"torch{versions.get('__version__', 'none')}-cuda{versions.get('cuda', 'none')}"
