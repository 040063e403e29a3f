"""Write a series' manifest: the hash of every file it touches, before and after.

For a maintainer who has changed a patch: `python -m flashinfer_patches.make_manifest 0.6.14`.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SERIES = Path(__file__).parent / "series"


def patches(version: str) -> list[Path]:
    """The patch files of a release, in the order of its `series` file."""
    folder = SERIES / version
    return [folder / name for name in (folder / "series").read_text().split()]


def touched(version: str) -> list[str]:
    """Paths of the files that a release's series changes or adds, relative to site-packages, sorted."""
    lines = [line for patch in patches(version) for line in patch.read_text().splitlines()]
    return sorted({line.removeprefix("+++ b/") for line in lines if line.startswith("+++ b/")})


def stage(version: str, pristine: Path, folder: Path) -> None:
    """Put the touched files of `pristine` into the empty `folder` and apply the series there.

    pristine: a folder that holds an untouched `flashinfer` package of this version.
    Raises subprocess.CalledProcessError where a patch does not apply.
    """
    for name in touched(version):
        if (pristine / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(pristine / name, folder / name)
    # Inside a repository `git apply` skips, silently, the files that lie outside the current folder's prefix.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)}
    for patch in patches(version):
        subprocess.run(["git", "apply", "-p1", str(patch)], cwd=folder, env=environment, check=True)


def manifest(version: str, pristine: Path) -> dict:
    """The manifest of a series: {"package", "version", "files": [{"path", "before", "after"}]}, SHA-256 in hex.

    `before` is None for a file that the series adds.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "staged"
        folder.mkdir()
        stage(version, pristine, folder)
        files = [{"path": p, "before": _hash(pristine / p), "after": _hash(folder / p)} for p in touched(version)]
    return {"package": "flashinfer-python", "version": version, "files": files}


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def main() -> None:
    from flashinfer_patches import fetch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", choices=sorted(p.name for p in SERIES.iterdir()))
    version = parser.parse_args().version
    text = json.dumps(manifest(version, fetch.pristine(version)), indent=1) + "\n"
    (SERIES / version / "manifest").write_text(text)


if __name__ == "__main__":
    main()
