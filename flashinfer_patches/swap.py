"""Bring new bytes into a package, so that an interruption at any moment can be finished."""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from flashinfer_patches import files, package
from flashinfer_patches.staging import Contents
from flashinfer_patches.state import Look


def links(target: Path) -> list[Path]:
    """The files of the package in `target` that are symbolic links, as uv's --link-mode symlink makes them."""
    paths = (Path(folder, name) for folder, _, names in os.walk(target / "flashinfer") for name in names)
    return [path for path in paths if path.is_symlink() and path.is_file()]


def own(look: Look) -> None:
    """Replace the package's symbolic links by hard links or copies, each by one rename; what they name stays as it is.

    FlashInfer finds its headers beside its own resolved files: of a linked package it would compile another's.
    """
    for path in links(look.target):
        new, source = look.kept / "staged" / path.relative_to(look.target), path.resolve()
        new.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        try:
            os.link(source, new)
        except OSError:  # on another disk, or another user's
            shutil.copy2(source, new)
        os.replace(new, path)


def keep(look: Look, before: Contents) -> None:
    """Store what the swap is about to replace, and the manifest that recognises what it brings."""
    originals = look.kept / "originals"
    for path, data in before.items():
        if data is not None and package.content(originals / path) != data:
            _replace(originals / path, data)
    manifest = look.series.manifest
    _replace(look.kept / "manifests" / f"{manifest.patch_set}.json", manifest.model_dump_json(indent=1).encode())


def swap_in(look: Look, new: Contents) -> None:
    """Put the new bytes in place, each file by one rename; None removes it. A created file comes before its users."""
    staged = look.kept / "staged"
    order = sorted(new, key=lambda path: (new[path] is None, (look.target / path).exists(), path))
    for path in order:
        if new[path] is not None:
            _write_like(look.target / path, staged / path, new[path])
    for path in order:
        place = look.target / path
        # Removed while the old source is still there: bytecode is never older than what Python finds beside it.
        for bytecode in (place.parent / "__pycache__").glob(f"{place.stem}.*.pyc"):
            bytecode.unlink()
        if new[path] is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / path, place)
        else:
            place.unlink()
    for path in look.created:
        _prune((look.target / path).parent, look.target / "flashinfer")
    if staged.exists():
        shutil.rmtree(staged)


def _write_like(old: Path, new: Path, data: bytes) -> None:
    """Write `new` with the mode of `old`, and younger by a whole second at least: caches look at seconds and size."""
    new.parent.mkdir(parents=True, exist_ok=True)
    files.write_new(new, data)
    if old.exists():
        before, now = old.stat(), new.stat()
        os.chmod(new, stat.S_IMODE(before.st_mode))
        modified = max(now.st_mtime, int(before.st_mtime) + 1)
        os.utime(new, (modified, modified))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    files.write_new(new, data)
    os.replace(new, path)


def _prune(folder: Path, top: Path) -> None:
    """Remove the folders below `top` that are empty now, from `folder` upwards."""
    while folder != top:
        for empty in (folder / "__pycache__", folder):
            with suppress(OSError):  # absent, or not empty
                empty.rmdir()
        folder = folder.parent


def tidy(look: Look) -> None:
    """Remove what only another patch set needs."""
    own = f"{look.series.manifest.patch_set}.json"
    for manifest in (look.kept / "manifests").iterdir():
        if manifest.name != own:
            manifest.unlink()
    originals = look.kept / "originals"
    for path in [path for path in originals.rglob("*") if path.is_file()]:
        file = look.own.get(str(path.relative_to(originals)))
        if file is None or package.sha256(path.read_bytes()) != file.before:
            path.unlink()
            _prune(path.parent, originals)
