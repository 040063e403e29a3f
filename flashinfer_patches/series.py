"""The patch series of each supported FlashInfer release: what is applied in which order, and what comes of it.

`series/<version>/` holds `series` (patch names in order, one a line), `*.patch` (for `git apply -p1` in the folder that
contains the `flashinfer` package) and `manifest` (JSON: package, version, and of each file path, sha256 before, sha256
after; before is null where the series creates the file).
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
REINSTALL_US = "restore the series from this project's repository"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _inside_package(path: str) -> str:
    parts = PurePosixPath(path).parts
    if parts[:1] != ("flashinfer",) or len(parts) < 2 or ".." in parts or str(PurePosixPath(path)) != path:
        raise ValueError(f"{path!r} is not a plain path inside flashinfer/")
    return path


class File(Strict):
    """One file of the package and its sha256 before and after the series; before is None where there is none."""

    path: Annotated[str, AfterValidator(_inside_package)]
    before: Sha256 | None
    after: Sha256

    @model_validator(mode="after")
    def _changes(self):
        if self.before == self.after:
            raise ValueError(f"{self.path} is the same before and after")
        return self


class Manifest(Strict):
    """What a series does to one release."""

    package: str
    version: str
    files: list[File]

    @model_validator(mode="after")
    def _each_file_once(self):
        if not self.files or len({file.path for file in self.files}) != len(self.files):
            raise ValueError("files: none, or one of them twice")
        return self

    @property
    def patch_set(self) -> str:
        """The id of what the release becomes: "<version>+<hash>"."""
        return f"{self.version}+{fingerprint({file.path: file.after for file in self.files})}"


class Series(Strict):
    """A manifest and its patches, in order."""

    manifest: Manifest
    patches: list[Path]


def versions(root: Path | None = None) -> list[str]:
    """The releases that have a series, oldest first."""
    found = [folder.parent.name for folder in (root or ROOT).glob("*/manifest")]
    return sorted(found, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])


def patches(version: str, root: Path | None = None) -> list[Path]:
    """The patch files of a release, in order. Raises OSError where its order file cannot be read."""
    folder = (root or ROOT) / version
    lines = [line.strip() for line in (folder / "series").read_text().splitlines()]
    return [folder / line for line in lines if line and not line.startswith("#")]


def read(version: str, root: Path | None = None) -> Series:
    """The series of one release. Raises Problem: "version" for one without, "series" for one that is not whole."""
    folder = (root or ROOT) / version
    if version not in versions(root):
        have = ", ".join(versions(root)) or "none"
        raise Problem(
            "version",
            f"FlashInfer {version} has no patch series here; supported: {have}",
            f"install a supported one, without its dependencies: pip install --no-deps {PACKAGE}==<version>",
        )
    try:
        manifest = Manifest.model_validate_json((folder / "manifest").read_bytes())
        ordered = patches(version, root)
    except (OSError, ValidationError) as error:
        raise Problem("series", f"{folder} is not a whole series: {error}", REINSTALL_US) from error
    present = sorted(folder.glob("*.patch"))
    if sorted(ordered) != present or (manifest.package, manifest.version) != (PACKAGE, version):
        listed, held = ([patch.name for patch in some] for some in (ordered, present))
        raise Problem(
            "series",
            f"{folder}: the order file lists {listed}, the folder holds {held},"
            f" the manifest is for {manifest.package} {manifest.version}",
            REINSTALL_US,
        )
    return Series(manifest=manifest, patches=ordered)


def fingerprint(digests: Mapping[str, str | None]) -> str:
    """12 hex digits of a set of files by path and sha256 (None: absent)."""
    lines = [f"{path} {digests[path]}\n" for path in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
