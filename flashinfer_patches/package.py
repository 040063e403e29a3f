"""Find and read a FlashInfer without importing it."""

import csv
import hashlib
import importlib.util
import re
from pathlib import Path

from flashinfer_patches.errors import Problem


def installed() -> Path | None:
    """Return the folder that holds the `flashinfer` package that Python would import; None without a package."""
    try:
        spec = importlib.util.find_spec("flashinfer")
    except ValueError:  # sys.modules has a module without a spec
        return None
    # A leftover folder without __init__.py is a namespace package, without origin. The file itself is not resolved: it
    # may be a symbolic link into an installer's cache, which other environments share.
    return Path(spec.origin).parent.parent.resolve() if spec and spec.origin else None


def find(target: Path | None) -> Path:
    """Return the folder that holds the `flashinfer` package: `target`, or that of the installed one.

    Raises Problem("target") without a package.
    """
    if target is None:
        if folder := installed():
            return folder
        raise Problem(
            "target",
            "no FlashInfer is installed in this environment",
            "install it: make setup DEVICE=gpu; or name a folder that has it: patch ... --target DIR, or PYTHONPATH=DIR"
            " fp8-sinks cache ...; or fetch a copy to patch: make patch",
        )
    if not (target / "flashinfer" / "__init__.py").is_file():
        raise Problem(
            "target",
            f"{target} has no flashinfer package (flashinfer/__init__.py)",
            "name the folder that contains it, such as an environment's site-packages",
        )
    return target.resolve()


def version(target: Path) -> str:
    """Return the release of the package in `target`, from its build metadata; "unknown" for a source tree."""
    try:
        text = (target / "flashinfer" / "_build_meta.py").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return match[1] if match else "unknown"


def installed_paths(target: Path) -> frozenset[str]:
    """Return the paths in the installer's RECORD; empty without a record."""
    records = target.glob("flashinfer_python-*.dist-info/RECORD")
    rows = (row for record in records for row in csv.reader(record.read_text().splitlines()))
    return frozenset(row[0] for row in rows if row)


def content(path: Path) -> bytes | None:
    """Return the bytes of a file; None if it is absent."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def sha256(data: bytes | None) -> str | None:
    """Return the hex digest; None for None."""
    return None if data is None else hashlib.sha256(data).hexdigest()
