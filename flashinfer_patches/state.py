"""What a FlashInfer is, judged by the sha256 of its files alone.

A file is `clean` (the release's bytes), `applied` (what the series makes of it), `older` (what another patch set of
ours made of it) or `edited` (anything else).
"""

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from flashinfer_patches import package, staging
from flashinfer_patches import series as all_series
from flashinfer_patches.errors import Problem
from flashinfer_patches.series import File, Manifest, Series
from flashinfer_patches.strict import Strict

FileState = Literal["clean", "applied", "older", "edited"]
State = Literal["clean", "applied", "partial", "superseded", "unknown version", "edited"]

KEPT = ".flashinfer_patches"
LOCK = ".flashinfer_patches.lock"


class Status(Strict):
    """What a FlashInfer is, judged by its bytes.

    target: the folder that holds the package. files: by path; beside those of the series, what an older patch set of
    ours left. patch_set: "<version>+<hash>" where applied. fingerprint: 12 hex digits of the bytes that the series is
    about; equal to the patch set's hash exactly if applied. patched_source: the folder that the package's files are
    symbolic links into, where that is patched itself, as older versions of ours did it.
    """

    target: Path
    version: str
    state: State
    files: dict[str, FileState]
    patch_set: str | None
    fingerprint: str
    patched_source: Path | None = None


class Look(Strict):
    """One look at a target.

    supported: the releases with a series. others: manifests that were applied here beside the release's own series, by
    which older files of ours are recognised. digests: sha256 by path, None where there is no file. installed: the paths
    that the installer wrote.
    """

    target: Path
    version: str
    supported: list[str]
    series: Series | None
    others: list[Manifest]
    digests: dict[str, str | None]
    installed: frozenset[str]

    @property
    def kept(self) -> Path:
        return self.target / KEPT

    @property
    def own(self) -> dict[str, File]:
        """The files of the release's own series."""
        return {file.path: file for file in self.series.manifest.files} if self.series else {}

    @property
    def patched_source(self) -> Path | None:
        """As in Status."""
        source = (self.target / "flashinfer" / "_build_meta.py").resolve().parent.parent
        return source if source != self.target and (source / KEPT).is_dir() else None

    @property
    def created(self) -> list[str]:
        """Every path that a patch set of ours creates."""
        known = [*self.others, *([self.series.manifest] if self.series else [])]
        return [file.path for manifest in known for file in manifest.files if file.before is None]

    @property
    def strays(self) -> dict[str, File]:
        """Files that another patch set of ours made and this one knows nothing about."""
        others = [file for manifest in self.others for file in manifest.files if file.path not in self.own]
        ours = {file.path: file for file in others if self.digests[file.path] == file.after}
        # A later release may have taken a file of ours as it is: then it is the release's.
        return {path: file for path, file in ours.items() if file.before is not None or path not in self.installed}

    @property
    def files(self) -> dict[str, FileState]:
        older = {(file.path, file.after) for manifest in self.others for file in manifest.files}

        def state(file: File) -> FileState:
            digest = self.digests[file.path]
            if digest == file.after:
                return "applied"
            if digest == file.before:
                return "clean"
            return "older" if (file.path, digest) in older else "edited"

        return {path: state(file) for path, file in self.own.items()} | dict.fromkeys(self.strays, "older")

    @property
    def leftovers(self) -> bool:
        """Whether an earlier run was interrupted, is at it now, or left what only another release needs."""
        name = self.series and f"{self.series.manifest.patch_set}.json"
        manifests = {path.name for path in (self.kept / "manifests").glob("*")}
        return (self.target / LOCK).exists() or (self.kept / "staged").exists() or bool(manifests - {name})


def look_at(target: Path, root: Path | None) -> Look:
    """Read the series and hash the files. Raises Problem: "series", "target" where a file cannot be read."""
    version = package.version(target)
    supported = all_series.versions(root)
    series = all_series.read(version, root) if version in supported else None
    own = series.manifest if series else None
    others = []
    for path in sorted((target / KEPT / "manifests").glob("*.json")):
        with suppress(ValidationError, OSError):  # cut off: apply writes them before it changes anything
            others.append(Manifest.model_validate_json(path.read_bytes()))
    others = [other for other in others if other != own]
    paths = {file.path for manifest in ([own] if own else []) + others for file in manifest.files}
    try:
        digests = {path: package.sha256(package.content(target / path)) for path in sorted(paths)}
    except OSError as error:
        raise Problem("target", f"{error.filename} cannot be read: {error.strerror}", "mend its rights") from error
    return Look(
        target=target,
        version=version,
        supported=supported,
        series=series,
        others=others,
        digests=digests,
        installed=package.installed_paths(target),
    )


def judge(look: Look, root: Path | None) -> Status:
    """The status of what was looked at."""
    states = set(look.files.values())
    state: State
    if look.series is None:
        known = (all_series.read(version, root) for version in look.supported)
        state = "superseded" if any(staging.contained(one, look.target) for one in known) else "unknown version"
    elif "edited" in states:
        upstream = not look.kept.exists() and staging.contained(look.series, look.target)
        state = "superseded" if upstream else "edited"
    elif len(states) == 1 and states <= {"clean", "applied"}:
        (state,) = states
    else:
        state = "partial"
    return Status(
        target=look.target,
        version=look.version,
        state=state,
        files=look.files,
        patch_set=look.series.manifest.patch_set if state == "applied" else None,
        fingerprint=all_series.fingerprint({path: look.digests[path] for path in look.own}),
        patched_source=look.patched_source,
    )
