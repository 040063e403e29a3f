"""Apply a series to a FlashInfer and revert it, also after an interruption.

A file is recognised by its sha256 alone (state.py). The folder `.flashinfer_patches` beside the package holds the
originals, the manifests of the applied patch sets, and staged files. New files replace old ones by rename, never in
place: installers share files between environments by hard links, and by symbolic links, which apply replaces first.
Originals and manifest are written before the first rename and removed after the last, so that after a kill at any
moment the next apply or revert can finish.
"""

import os
import shutil
from pathlib import Path

from flashinfer_patches import locking, package, staging, swap
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.series import PACKAGE, File
from flashinfer_patches.staging import Contents
from flashinfer_patches.state import LOCK, STORE, Inspection, Status, classify, inspect

LOCK_TIMEOUT_S = 30.0


def status(target: Path | None = None, root: Path | None = None) -> Status:
    """Return the state of the FlashInfer in `target` (default: the installed one), without importing or changing it.

    root: the folder of all series. Raises Problem: "target" if there is none, "series".
    """
    return classify(inspect(package.find(target), root), root)


def check(target: Path | None = None, root: Path | None = None) -> Status:
    """Apply the series to copies of the files: prove that apply would succeed, or has. Changes nothing.

    Raises Problem as apply does.
    """
    inspection = inspect(package.find(target), root)
    current = classify(inspection, root)
    _refuse_to_apply(current, inspection)
    staging.forward(inspection.series, _pristine(inspection, _unapplied(inspection)))
    return current


def apply(target: Path | None = None, root: Path | None = None, timeout_s: float = LOCK_TIMEOUT_S) -> Status:
    """Apply the series to the FlashInfer in `target`; writes nothing if it is applied.

    Raises Problem: "target", "version", "edited", "superseded", "git", "series", "disk", "lock" (held for more than
    timeout_s seconds). After all but "disk" every file of the package is unchanged.
    """
    target = package.find(target)
    inspection = inspect(target, root)
    current = classify(inspection, root)
    _refuse_to_apply(current, inspection)
    if current.state == "applied" and not inspection.leftovers and not swap.links(target):
        return current
    with writing(target), locking.held(target / LOCK, "fp8-sinks patch apply", timeout_s):
        inspection = inspect(target, root)
        _refuse_to_apply(classify(inspection, root), inspection)
        unapplied = _unapplied(inspection)
        before = _pristine(inspection, {**unapplied, **inspection.strays})
        after = staging.forward(inspection.series, {path: before[path] for path in unapplied})
        swap.replace_links(inspection)
        swap.store(inspection, before)
        swap.swap_in(inspection, after | {path: before[path] for path in inspection.strays})
        swap.tidy(inspection)
    return status(target, root).model_copy(update={"patched_source": current.patched_source})


def revert(target: Path | None = None, root: Path | None = None, timeout_s: float = LOCK_TIMEOUT_S) -> Status:
    """Restore the release's exact bytes in `target`, and remove everything that apply added.

    Raises Problem as apply does; "edited" also if an original is lost and cannot be computed.
    """
    target = package.find(target)
    inspection = inspect(target, root)
    current = classify(inspection, root)
    no_leftovers = not inspection.store.exists() and not inspection.leftovers and not inspection.strays
    if no_leftovers and current.state == "clean":
        return current
    if no_leftovers:
        _refuse_to_revert(current, inspection)
    with writing(target), locking.held(target / LOCK, "fp8-sinks patch revert", timeout_s):
        inspection = inspect(target, root)
        _refuse_to_revert(classify(inspection, root), inspection)
        files = {**inspection.series_files, **inspection.strays}
        changed = {path: file for path, file in files.items() if inspection.files[path] != "clean"}
        swap.swap_in(inspection, _pristine(inspection, changed))
        if inspection.store.exists():
            shutil.rmtree(inspection.store)
    return status(target, root)


def _refuse_to_apply(current: Status, inspection: Inspection) -> None:
    if current.state == "superseded":
        raise Problem(
            "superseded",
            f"FlashInfer {current.version} in {current.target} has the changes of the series already",
            "use it as it is",
        )
    if current.state == "unknown version":
        raise Problem(
            "version",
            f"no patch series for FlashInfer {current.version} in {current.target}; supported:"
            f" {', '.join(inspection.supported) or 'none'}",
            f"install a supported release, without its dependencies: pip install --no-deps {PACKAGE}==<version>",
        )
    _refuse_edited(current, inspection)
    _refuse_linked_folders(inspection)


def _refuse_to_revert(current: Status, inspection: Inspection) -> None:
    leftovers = inspection.store.exists() or inspection.strays
    if current.state in ("superseded", "unknown version") and not leftovers:
        _refuse_to_apply(current, inspection)
    _refuse_edited(current, inspection)
    _refuse_linked_folders(inspection)


def _refuse_edited(current: Status, inspection: Inspection) -> None:
    edited = [path for path, state in current.files.items() if state == "edited"]
    if not edited:
        return
    details = []
    for path in edited:
        file, digest = inspection.series_files[path], inspection.digests[path]
        details.append(
            f"{path} ({f'sha256 {digest[:12]}' if digest else 'missing'}, expected"
            f" {file.before[:12] if file.before else 'none'} or {file.after[:12]})"
        )
    raise Problem(
        "edited",
        f"{current.target}: files neither of FlashInfer {current.version} nor of the series: {', '.join(details)}",
        _reinstall(inspection),
    )


def _refuse_linked_folders(inspection: Inspection) -> None:
    """Raise Problem("target") for a linked folder: a file replaced in it would change for everybody who shares it."""
    paths = (*inspection.series_files, *inspection.strays)
    parents = {str(folder) for path in paths for folder in Path(path).parents} - {"."}
    stored = [Path(above, name) for above, names, _ in os.walk(inspection.store) for name in names]
    for folder in [inspection.target / name for name in sorted({*parents, STORE})] + stored:
        if folder.is_symlink():
            raise Problem(
                "target",
                f"{folder} is a symbolic link to {folder.resolve()}, which may be shared; expected a folder",
                "replace the link by a copy; or patch its target: patch ... --target DIR",
            )


def _reinstall(inspection: Inspection) -> str:
    installed = inspection.target == package.installed()
    options = "--force-reinstall" if installed else f"--upgrade --target {inspection.target}"
    return f"install the release again: pip install --no-deps {options} {PACKAGE}=={inspection.version}"


def _unapplied(inspection: Inspection) -> dict[str, File]:
    return {path: file for path, file in inspection.series_files.items() if inspection.files[path] != "applied"}


def _pristine(inspection: Inspection, files: dict[str, File]) -> Contents:
    """Return the bytes before any patch: from the file if clean, from its stored original, or computed."""
    contents: Contents = {}
    for path, file in files.items():
        sources = (inspection.target / path, inspection.store / "originals" / path)
        candidates = (None,) if file.before is None else map(package.content, sources)
        for data in candidates:
            if package.sha256(data) == file.before:
                contents[path] = data
    lost = [path for path in files if path not in contents]
    if not lost:
        return contents
    if not all(path in inspection.series_files and inspection.files[path] == "applied" for path in lost):
        raise Problem(
            "edited",
            f"{inspection.target}: an older patch set is applied and the originals of {', '.join(lost)} are missing",
            _reinstall(inspection),
        )
    applied = {path: package.content(inspection.target / path) for path in lost}
    return contents | staging.backward(inspection.series, applied)
