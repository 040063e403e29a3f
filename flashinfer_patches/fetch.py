"""Copies of FlashInfer's wheels for machines that have none installed: to read, patch, import and compile.

`.flashinfer/<version>/pristine` is the unpacked wheel, `.flashinfer/<version>/patched` the same with our series. Both
are made under another name and renamed, so that a folder that is there is whole.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem, writing
from flashinfer_patches.series import PACKAGE

FOLDER = Path(__file__).resolve().parent.parent / ".flashinfer"
DEFAULT = "0.6.14"
# sha256 of the wheels on the package index.
WHEELS = {
    "0.6.14": "d124369346a3d48eac67e31c42f7a3c813bcc0abc10e2e36db413b7b3dfd97df",
    "0.7.2.post1": "bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49",
}


def pristine(version: str = DEFAULT, folder: Path = FOLDER) -> Path:
    """A folder that holds the unpacked `flashinfer` package of a release; fetched with pip where it is missing.

    Raises Problem: "version" for a release without a known wheel, "fetch" where it cannot be had or is another.
    """
    if version not in WHEELS:
        known = ", ".join(WHEELS)
        raise Problem("version", f"no wheel of FlashInfer {version} is known here", f"name one of {known}")
    place = folder / version / "pristine"
    if not place.exists():
        _make(place, lambda new: _unpack(_download(version, new.parent), new))
    return place


def patched(version: str = DEFAULT, folder: Path = FOLDER, root: Path | None = None) -> Path:
    """A folder that holds the package with our series applied; brought up to date if the series has changed.

    Its files are hard links to the pristine ones, except for those that the series changes. Raises Problem.
    """
    place = folder / version / "patched"
    if not place.exists():
        source = pristine(version, folder)
        _make(place, lambda new: shutil.copytree(source, new, copy_function=os.link))
    engine.apply(place, root)
    return place


def copy() -> Path | None:
    """The patched copy that `make patch` made in this checkout; None where there is none."""
    place = FOLDER / DEFAULT / "patched"
    return place if place.is_dir() else None


def _make(place: Path, fill) -> None:
    """A folder made whole by fill(new) or not at all; of two that make it at once, the first one wins."""
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as scratch:
            new = Path(scratch) / place.name
            fill(new)
            try:
                os.rename(new, place)
            except OSError:
                if not place.exists():
                    raise


def _download(version: str, folder: Path) -> Path:
    """The wheel of a release, through pip and whatever index it is set up for."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{PACKAGE}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Problem(
            "fetch",
            f"pip cannot download {PACKAGE} {version}: {said}",
            "check the network and pip's index, then run this again",
        )
    with open(wheels[0], "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != WHEELS[version]:
        raise Problem(
            "fetch",
            f"the wheel of {PACKAGE} {version} has sha256 {got}, expected {WHEELS[version]}",
            "use an index that serves the released wheel",
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def main(folder: Path = FOLDER) -> None:
    """`make patch`: patch the installed FlashInfer; where there is none, a copy of our own."""
    if place := package.installed():
        found, what = engine.apply(place), "the installed FlashInfer"
    else:
        found, what = (
            engine.status(patched(folder=folder)),
            "no FlashInfer is installed, so a copy to read, import and compile:",
        )
    print(f"make patch: {what} {found.version} in {found.target} is patched ({found.patch_set})", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except Problem as error:
        error.show()
        sys.exit(error.exit_code)
