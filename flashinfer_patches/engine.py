"""Apply a series to a FlashInfer and take it out again, whatever an interruption left.

Every file is recognised by its sha256 alone (state.py). Beside the package, `.flashinfer_patches` holds the originals,
the manifests of what is applied, and the files about to be swapped in. New bytes come in by rename, never by writing:
installers share files between environments by hard links, and by symbolic ones, which apply replaces first. Originals
and manifest are written before the first swap and removed after the last, so that at any moment the next apply or
revert can finish.
"""

import os
import shutil
from pathlib import Path

from flashinfer_patches import locking, package, staging, swap
from flashinfer_patches.errors import Problem, writing
from flashinfer_patches.series import PACKAGE, File
from flashinfer_patches.staging import Contents
from flashinfer_patches.state import KEPT, LOCK, Look, Status, judge, look_at

LOCK_TIMEOUT_S = 30.0


def status(target: Path | None = None, root: Path | None = None) -> Status:
    """What the FlashInfer in `target` (default: the installed one) is. Writes nothing, imports nothing of it.

    root: the folder of all series. Raises Problem: "target" where there is none, "series".
    """
    return judge(look_at(package.find(target), root), root)


def check(target: Path | None = None, root: Path | None = None) -> Status:
    """Prove that the series is applied, or that apply would succeed, by doing it on copies. Changes nothing.

    Raises Problem as apply does.
    """
    look = look_at(package.find(target), root)
    found = judge(look, root)
    _refuse_to_apply(found, look)
    staging.forward(look.series, _pristine(look, _unapplied(look)))
    return found


def apply(target: Path | None = None, root: Path | None = None, timeout_s: float = LOCK_TIMEOUT_S) -> Status:
    """Bring the FlashInfer in `target` to exactly applied; where it is, nothing is written.

    Raises Problem: "target", "version", "edited", "superseded", "git", "series", "write", "lock" (held for
    timeout_s seconds). All but "write" leave every file of the package as it was.
    """
    place = package.find(target)
    look = look_at(place, root)
    found = judge(look, root)
    _refuse_to_apply(found, look)
    if found.state == "applied" and not look.leftovers and not swap.links(place):
        return found
    with writing(place), locking.held(place / LOCK, "fp8-sinks patch apply", timeout_s):
        look = look_at(place, root)
        _refuse_to_apply(judge(look, root), look)
        unapplied = _unapplied(look)
        before = _pristine(look, {**unapplied, **look.strays})
        new = staging.forward(look.series, {path: before[path] for path in unapplied})
        swap.own(look)
        swap.keep(look, before)
        swap.swap_in(look, new | {path: before[path] for path in look.strays})
        swap.tidy(look)
    return status(target, root).model_copy(update={"patched_source": found.patched_source})


def revert(target: Path | None = None, root: Path | None = None, timeout_s: float = LOCK_TIMEOUT_S) -> Status:
    """Bring the FlashInfer in `target` back to the release's exact bytes, and remove all that apply added.

    Raises Problem as apply does; "edited" also where an original is lost and cannot be computed.
    """
    place = package.find(target)
    look = look_at(place, root)
    found = judge(look, root)
    nothing_left = not look.kept.exists() and not look.leftovers and not look.strays
    if nothing_left and found.state == "clean":
        return found
    if nothing_left:
        _refuse_to_revert(found, look)
    with writing(place), locking.held(place / LOCK, "fp8-sinks patch revert", timeout_s):
        look = look_at(place, root)
        _refuse_to_revert(judge(look, root), look)
        changed = {path: file for path, file in {**look.own, **look.strays}.items() if look.files[path] != "clean"}
        swap.swap_in(look, _pristine(look, changed))
        if look.kept.exists():
            shutil.rmtree(look.kept)
    return status(target, root)


def _refuse_to_apply(found: Status, look: Look) -> None:
    if found.state == "superseded":
        raise Problem(
            "superseded",
            f"FlashInfer {found.version} in {found.target} holds these changes already: there is nothing to apply",
            "use it as it is",
        )
    if found.state == "unknown version":
        raise Problem(
            "version",
            f"{found.target} holds FlashInfer {found.version}, which has no patch series here; supported:"
            f" {', '.join(look.supported) or 'none'}",
            f"install a supported release, without its dependencies: pip install --no-deps {PACKAGE}==<version>",
        )
    _refuse_edited(found, look)
    _refuse_linked_folders(look)


def _refuse_to_revert(found: Status, look: Look) -> None:
    leftovers = look.kept.exists() or look.strays
    if found.state in ("superseded", "unknown version") and not leftovers:
        _refuse_to_apply(found, look)
    _refuse_edited(found, look)
    _refuse_linked_folders(look)


def _refuse_edited(found: Status, look: Look) -> None:
    edited = [path for path, state in found.files.items() if state == "edited"]
    if not edited:
        return
    details = []
    for path in edited:
        file, got = look.own[path], look.digests[path]
        details.append(
            f"{path} ({f'sha256 {got[:12]}' if got else 'missing'}, expected"
            f" {file.before[:12] if file.before else 'none'} or {file.after[:12]})"
        )
    raise Problem(
        "edited",
        f"{found.target}: neither FlashInfer {found.version} nor what the series makes of it: {', '.join(details)}",
        _reinstall(look),
    )


def _refuse_linked_folders(look: Look) -> None:
    """A file is replaced in its folder: in a linked one, for everybody who shares that."""
    parents = {str(folder) for path in (*look.own, *look.strays) for folder in Path(path).parents} - {"."}
    kept = [Path(above, name) for above, names, _ in os.walk(look.kept) for name in names]
    for linked in [look.target / folder for folder in sorted({*parents, KEPT})] + kept:
        if linked.is_symlink():
            raise Problem(
                "target",
                f"{linked} is a symbolic link to {linked.resolve()}, which others may share; expected a folder",
                "put a copy in place of that link; or patch what it leads to: patch ... --target DIR",
            )


def _reinstall(look: Look) -> str:
    where = "--force-reinstall" if look.target == package.installed() else f"--upgrade --target {look.target}"
    return f"install the release again: pip install --no-deps {where} {PACKAGE}=={look.version}"


def _unapplied(look: Look) -> dict[str, File]:
    return {path: file for path, file in look.own.items() if look.files[path] != "applied"}


def _pristine(look: Look, files: dict[str, File]) -> Contents:
    """The bytes before any patch: the file's own where it is clean, else the original kept, else computed."""
    found: Contents = {}
    for path, file in files.items():
        places = (look.target / path, look.kept / "originals" / path)
        candidates = (None,) if file.before is None else map(package.content, places)
        for data in candidates:
            if package.sha256(data) == file.before:
                found[path] = data
    lost = [path for path in files if path not in found]
    if not lost:
        return found
    if not all(path in look.own and look.files[path] == "applied" for path in lost):
        raise Problem(
            "edited",
            f"{look.target}: an older patch set is applied and the originals of {', '.join(lost)} are gone",
            _reinstall(look),
        )
    return found | staging.backward(look.series, {path: package.content(look.target / path) for path in lost})
