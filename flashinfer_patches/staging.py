"""Apply a series to copies of its files, in a temporary folder outside of any repository."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flashinfer_patches import package
from flashinfer_patches.errors import Problem
from flashinfer_patches.series import RESTORE_SERIES, Series

Contents = dict[str, bytes | None]


def forward(series: Series, before: Mapping[str, bytes | None]) -> Contents:
    """Apply the series to the files in `before` (path to bytes, None: absent), and check the result's hashes.

    Files of the manifest that are not in `before` are excluded from the patches.
    """
    return _checked(series, before, reverse=False)


def backward(series: Series, after: Mapping[str, bytes | None]) -> Contents:
    """Revert the series on the files in `after`, and check the result's hashes."""
    return _checked(series, after, reverse=True)


def contained(series: Series, target: Path) -> bool:
    """Whether the files of `target` contain every change of the series, whatever else differs in them.

    A file that the series creates must be exactly as the series creates it.
    """
    if shutil.which("git") is None:
        return False
    files = {file.path: package.content(target / file.path) for file in series.manifest.files}
    try:
        # Without --unidiff-zero git matches a change of a file's first or last lines only there.
        run(series.patches, files, "--reverse", "--unidiff-zero")
    except Problem:
        return False
    return True


def run(patches: Sequence[Path], contents: Mapping[str, bytes | None], *options: str) -> Contents:
    """Run `git apply` with these patches on the files in `contents`; return the resulting files.

    options: for git; with "--reverse" the last patch comes first. Raises Problem: "git", "series" if a patch fails.
    """
    git = shutil.which("git")
    if git is None:
        raise Problem("git", "git is not on PATH; it applies the patches", "install git, then run this again")
    with tempfile.TemporaryDirectory(prefix="flashinfer-patches-") as folder:
        stage = Path(folder).resolve()
        for path, data in contents.items():
            if data is not None:
                (stage / path).parent.mkdir(parents=True, exist_ok=True)
                (stage / path).write_bytes(data)
        for patch in reversed(patches) if "--reverse" in options else patches:
            process = subprocess.run(
                [git, "apply", "--whitespace=nowarn", *options, str(patch.resolve())],
                cwd=stage,
                env=_environment(stage),
                capture_output=True,
                text=True,
                errors="replace",
            )
            if process.returncode != 0:
                raise Problem(
                    "series",
                    f"{patch.name} of the series for {patch.parent.name} does not apply: {process.stderr.strip()}",
                    RESTORE_SERIES,
                )
        paths = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()}
        return {path: package.content(stage / path) for path in paths | set(contents)}


def _checked(series: Series, contents: Mapping[str, bytes | None], *, reverse: bool) -> Contents:
    if not contents:
        return {}
    left_out = [f"--exclude={file.path}" for file in series.manifest.files if file.path not in contents]
    result = run(series.patches, contents, *(["--reverse"] if reverse else []), *left_out)
    expected = {
        file.path: file.before if reverse else file.after for file in series.manifest.files if file.path in contents
    }
    # The hashes decide, not git's exit code.
    digests = {path: package.sha256(data) for path, data in result.items()}
    if wrong := sorted(path for path in expected | digests if expected.get(path) != digests.get(path)):
        raise Problem(
            "series",
            f"the series for {series.manifest.version} does not give the hashes of its manifest: {', '.join(wrong)}",
            RESTORE_SERIES,
        )
    return result


def _environment(stage: Path) -> dict[str, str]:
    """Hide repositories and the user's settings: inside a repository `git apply` skips files and exits with 0."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return inherited | {
        "GIT_CEILING_DIRECTORIES": str(stage.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }
