"""Read the patch series of each supported FlashInfer release.

`series/<version>/` holds `series` (patch names in order, a line each), `*.patch` (for `git apply -p1` in the folder
that contains the `flashinfer` package) and `manifest` (JSON: package, version, and for each file its path, sha256
before and sha256 after; before is null if the series creates the file).
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError, model_validator

from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict

ROOT = Path(__file__).parent / "series"
PACKAGE = "flashinfer-python"
RESTORE_SERIES = "restore the series from this project's repository"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _inside_package(path: str) -> str:
    parts = PurePosixPath(path).parts
    if parts[:1] != ("flashinfer",) or len(parts) < 2 or ".." in parts or str(PurePosixPath(path)) != path:
        raise ValueError(f"{path!r} is not a plain path inside flashinfer/")
    return path


class File(Strict):
    """A file of the package and its sha256 before (None: absent) and after the series."""

    path: Annotated[str, AfterValidator(_inside_package)]
    before: Sha256 | None
    after: Sha256

    @model_validator(mode="after")
    def _changes(self):
        if self.before == self.after:
            raise ValueError(f"{self.path}: the same hash before and after")
        return self


class Manifest(Strict):
    """The files that a series changes in a release."""

    package: str
    version: str
    files: list[File]

    @model_validator(mode="after")
    def _each_file_once(self):
        if not self.files or len({file.path for file in self.files}) != len(self.files):
            raise ValueError("files: expected at least a file, and each path once")
        return self

    @property
    def patch_set(self) -> str:
        """The id of the patched release: "<version>+<hash>"."""
        return f"{self.version}+{fingerprint({file.path: file.after for file in self.files})}"


class Series(Strict):
    """A manifest and the patches, in order."""

    manifest: Manifest
    patches: list[Path]


def versions(root: Path | None = None) -> list[str]:
    """List the releases that have a series, oldest first."""
    releases = [folder.parent.name for folder in (root or ROOT).glob("*/manifest")]
    return sorted(releases, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])


def patches(version: str, root: Path | None = None) -> list[Path]:
    """List the patch files of a release, in order. Raises OSError if the order file cannot be read."""
    folder = (root or ROOT) / version
    lines = [line.strip() for line in (folder / "series").read_text().splitlines()]
    return [folder / line for line in lines if line and not line.startswith("#")]


def read(version: str, root: Path | None = None) -> Series:
    """Read the series of a release. Raises Problem: "version" if there is none, "series" if it is incomplete."""
    folder = (root or ROOT) / version
    if version not in versions(root):
        supported = ", ".join(versions(root)) or "none"
        raise Problem(
            "version",
            f"no patch series for FlashInfer {version}; supported: {supported}",
            f"install a supported release, without its dependencies: pip install --no-deps {PACKAGE}==<version>",
        )
    try:
        manifest = Manifest.model_validate_json((folder / "manifest").read_bytes())
        ordered = patches(version, root)
    except (OSError, ValidationError) as error:
        raise Problem("series", f"{folder} is an incomplete series: {error}", RESTORE_SERIES) from error
    present = sorted(folder.glob("*.patch"))
    if sorted(ordered) != present or (manifest.package, manifest.version) != (PACKAGE, version):
        listed, existing = ([patch.name for patch in paths] for paths in (ordered, present))
        raise Problem(
            "series",
            f"{folder}: the order file lists {listed}, the folder has {existing},"
            f" the manifest is for {manifest.package} {manifest.version}",
            RESTORE_SERIES,
        )
    return Series(manifest=manifest, patches=ordered)


def fingerprint(digests: Mapping[str, str | None]) -> str:
    """Return 12 hex digits of a set of files, from their paths and sha256 (None: absent)."""
    lines = [f"{path} {digests[path]}\n" for path in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
