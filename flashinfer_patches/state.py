"""The state of a FlashInfer, from the sha256 of its files alone.

A file is `clean` (the release's bytes), `applied` (the result of the series), `older` (the result of another patch set
of ours) or `edited` (any other bytes).
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

STORE = ".flashinfer_patches"  # beside the package: originals, manifests, staged files
LOCK = ".flashinfer_patches.lock"


class Status(Strict):
    """The state of a FlashInfer.

    target: the folder that holds the package. files: state by path, for the files of the series and for leftovers of
    an older patch set. patch_set: "<version>+<hash>" if applied. fingerprint: 12 hex digits of the content of the
    series' files; the hash of the patch set if and only if applied. patched_source: the folder that the package's files
    link to, if an older version of fp8-sinks patched the files there.
    """

    target: Path
    version: str
    state: State
    files: dict[str, FileState]
    patch_set: str | None
    fingerprint: str
    patched_source: Path | None = None


class Inspection(Strict):
    """The files of a target, and the manifests to compare them with.

    supported: the releases with a series. past_manifests: manifests of other patch sets that were applied here.
    digests: sha256 by path, None for an absent file. installed: the paths that the installer recorded.
    """

    target: Path
    version: str
    supported: list[str]
    series: Series | None
    past_manifests: list[Manifest]
    digests: dict[str, str | None]
    installed: frozenset[str]

    @property
    def store(self) -> Path:
        """The folder of originals, manifests and staged files."""
        return self.target / STORE

    @property
    def series_files(self) -> dict[str, File]:
        """The files of the release's series, by path."""
        return {file.path: file for file in self.series.manifest.files} if self.series else {}

    @property
    def patched_source(self) -> Path | None:
        """As in Status."""
        source = (self.target / "flashinfer" / "_build_meta.py").resolve().parent.parent
        return source if source != self.target and (source / STORE).is_dir() else None

    @property
    def created(self) -> list[str]:
        """Every path that a patch set of ours creates."""
        manifests = [*self.past_manifests, *([self.series.manifest] if self.series else [])]
        return [file.path for manifest in manifests for file in manifest.files if file.before is None]

    @property
    def strays(self) -> dict[str, File]:
        """Files that another patch set of ours left and that are not in the series, by path."""
        past = [file for manifest in self.past_manifests for file in manifest.files]
        left = {file.path: file for file in past if self.digests[file.path] == file.after}
        # A created file that the installer recorded belongs to a later release, which has adopted it.
        return {
            path: file
            for path, file in left.items()
            if path not in self.series_files and (file.before is not None or path not in self.installed)
        }

    @property
    def files(self) -> dict[str, FileState]:
        """The state of each file, by path."""
        older = {(file.path, file.after) for manifest in self.past_manifests for file in manifest.files}

        def state(file: File) -> FileState:
            digest = self.digests[file.path]
            if digest == file.after:
                return "applied"
            if digest == file.before:
                return "clean"
            return "older" if (file.path, digest) in older else "edited"

        return {path: state(file) for path, file in self.series_files.items()} | dict.fromkeys(self.strays, "older")

    @property
    def leftovers(self) -> bool:
        """Whether a run was interrupted or is running, or the store has files that only another release needs."""
        name = self.series and f"{self.series.manifest.patch_set}.json"
        manifests = {path.name for path in (self.store / "manifests").glob("*")}
        return (self.target / LOCK).exists() or (self.store / "staged").exists() or bool(manifests - {name})


def inspect(target: Path, root: Path | None) -> Inspection:
    """Read the series and hash the files. Raises Problem: "series"; "target" if a file cannot be read."""
    version = package.version(target)
    supported = all_series.versions(root)
    series = all_series.read(version, root) if version in supported else None
    manifests = [series.manifest] if series else []
    for path in sorted((target / STORE / "manifests").glob("*.json")):
        with suppress(ValidationError, OSError):  # half-written: apply writes it before it changes a file
            manifests.append(Manifest.model_validate_json(path.read_bytes()))
    paths = {file.path for manifest in manifests for file in manifest.files}
    try:
        digests = {path: package.sha256(package.content(target / path)) for path in sorted(paths)}
    except OSError as error:
        remedy = "make the file readable"
        raise Problem("target", f"{error.filename} cannot be read: {error.strerror}", remedy) from error
    return Inspection(
        target=target,
        version=version,
        supported=supported,
        series=series,
        past_manifests=[manifest for manifest in manifests if not series or manifest != series.manifest],
        digests=digests,
        installed=package.installed_paths(target),
    )


def classify(inspection: Inspection, root: Path | None) -> Status:
    """Return the status of an inspected target."""
    states = set(inspection.files.values())
    state: State
    if inspection.series is None:
        every_series = (all_series.read(version, root) for version in inspection.supported)
        superseded = any(staging.contained(series, inspection.target) for series in every_series)
        state = "superseded" if superseded else "unknown version"
    elif "edited" in states:
        superseded = not inspection.store.exists() and staging.contained(inspection.series, inspection.target)
        state = "superseded" if superseded else "edited"
    elif len(states) == 1 and states <= {"clean", "applied"}:
        (state,) = states
    else:
        state = "partial"
    return Status(
        target=inspection.target,
        version=inspection.version,
        state=state,
        files=inspection.files,
        patch_set=inspection.series.manifest.patch_set if state == "applied" else None,
        fingerprint=all_series.fingerprint({path: inspection.digests[path] for path in inspection.series_files}),
        patched_source=inspection.patched_source,
    )
