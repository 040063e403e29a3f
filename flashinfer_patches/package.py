"""The FlashInfer in a folder: found without importing it, read by its bytes."""

import csv
import hashlib
import importlib.util
import re
from pathlib import Path

from flashinfer_patches.errors import Problem


def installed() -> Path | None:
    """The folder that holds the `flashinfer` package which Python would import; None where it would find none."""
    try:
        spec = importlib.util.find_spec("flashinfer")
    except ValueError:  # a stand-in without a spec was put into sys.modules
        return None
    # A folder left behind without __init__.py is a namespace: it has no origin. The file itself is not resolved: it may
    # be a symbolic link into an installer's cache, which other environments share.
    return Path(spec.origin).parent.parent.resolve() if spec and spec.origin else None


def find(target: Path | None) -> Path:
    """The folder that holds the `flashinfer` package: `target`, or where it is installed.

    Raises Problem("target") where there is none.
    """
    if target is None:
        if found := installed():
            return found
        raise Problem(
            "target",
            "no FlashInfer is installed in this environment",
            "make setup DEVICE=gpu installs one; or name a folder that holds one: patch ... --target DIR, or"
            " PYTHONPATH=DIR fp8-sinks cache ...; `make patch` fetches a copy to patch",
        )
    if not (target / "flashinfer" / "__init__.py").is_file():
        raise Problem(
            "target",
            f"{target} holds no flashinfer package (flashinfer/__init__.py)",
            "name the folder above it, such as an environment's site-packages",
        )
    return target.resolve()


def version(target: Path) -> str:
    """The release of the package in `target`, as its build wrote it down; "unknown" for a source tree."""
    try:
        text = (target / "flashinfer" / "_build_meta.py").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return match[1] if match else "unknown"


def installed_paths(target: Path) -> frozenset[str]:
    """The paths that the installer recorded as the release's; empty for a folder without a record."""
    records = target.glob("flashinfer_python-*.dist-info/RECORD")
    rows = (row for record in records for row in csv.reader(record.read_text().splitlines()))
    return frozenset(row[0] for row in rows if row)


def content(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def sha256(data: bytes | None) -> str | None:
    """Hex digest; None for None."""
    return None if data is None else hashlib.sha256(data).hexdigest()
