"""Replace the files of a package, so that the next run can finish after an interruption at any moment."""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from flashinfer_patches import files, package
from flashinfer_patches.staging import Contents
from flashinfer_patches.state import Inspection


def links(target: Path) -> list[Path]:
    """List the package's files that are symbolic links, as uv --link-mode symlink installs them."""
    paths = (Path(folder, name) for folder, _, names in os.walk(target / "flashinfer") for name in names)
    return [path for path in paths if path.is_symlink() and path.is_file()]


def replace_links(inspection: Inspection) -> None:
    """Replace the package's symbolic links by hard links or copies, each by a rename; their targets are unchanged.

    FlashInfer looks for its headers beside its resolved files: with links it would compile those of another package.
    """
    for path in links(inspection.target):
        new, source = inspection.store / "staged" / path.relative_to(inspection.target), path.resolve()
        new.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        try:
            os.link(source, new)
        except OSError:  # on another file system, or owned by another user
            shutil.copy2(source, new)
        os.replace(new, path)


def store(inspection: Inspection, before: Contents) -> None:
    """Store the originals of the files to be replaced, and the manifest that recognises the new ones."""
    originals = inspection.store / "originals"
    for path, data in before.items():
        if data is not None and package.content(originals / path) != data:
            _replace(originals / path, data)
    manifest = inspection.series.manifest
    _replace(inspection.store / "manifests" / f"{manifest.patch_set}.json", manifest.model_dump_json(indent=1).encode())


def swap_in(inspection: Inspection, contents: Contents) -> None:
    """Write the contents, each file by a rename; None removes it. Created files come before those that use them."""
    staged = inspection.store / "staged"
    order = sorted(contents, key=lambda path: (contents[path] is None, (inspection.target / path).exists(), path))
    for path in order:
        if contents[path] is not None:
            _write_like(inspection.target / path, staged / path, contents[path])
    for path in order:
        target = inspection.target / path
        # Removed before the new source comes: no bytecode of the old source is left for it.
        for bytecode in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
            bytecode.unlink()
        if contents[path] is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / path, target)
        else:
            target.unlink()
    for path in inspection.created:
        _prune((inspection.target / path).parent, inspection.target / "flashinfer")
    if staged.exists():
        shutil.rmtree(staged)


def _write_like(old: Path, new: Path, data: bytes) -> None:
    """Write `new` with the mode of `old` and a time at least a second later: caches compare seconds and size."""
    new.parent.mkdir(parents=True, exist_ok=True)
    files.write_new(new, data)
    if old.exists():
        old_status, new_status = old.stat(), new.stat()
        os.chmod(new, stat.S_IMODE(old_status.st_mode))
        modified = max(new_status.st_mtime, int(old_status.st_mtime) + 1)
        os.utime(new, (modified, modified))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, data)


def _prune(folder: Path, top: Path) -> None:
    """Remove empty folders from `folder` upwards, below `top`."""
    while folder != top:
        for empty in (folder / "__pycache__", folder):
            with suppress(OSError):  # absent, or not empty
                empty.rmdir()
        folder = folder.parent


def tidy(inspection: Inspection) -> None:
    """Remove the manifests and originals that only another patch set needs."""
    name = f"{inspection.series.manifest.patch_set}.json"
    for manifest in (inspection.store / "manifests").iterdir():
        if manifest.name != name:
            manifest.unlink()
    originals = inspection.store / "originals"
    for path in [path for path in originals.rglob("*") if path.is_file()]:
        file = inspection.series_files.get(str(path.relative_to(originals)))
        if file is None or package.sha256(path.read_bytes()) != file.before:
            path.unlink()
            _prune(path.parent, originals)
