"""Run a series on copies of its files, in a temporary folder that belongs to no repository."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flashinfer_patches import package
from flashinfer_patches.errors import Problem
from flashinfer_patches.series import REINSTALL_US, Series

Contents = dict[str, bytes | None]


def forward(series: Series, before: Mapping[str, bytes | None]) -> Contents:
    """What the series makes of the files in `before` (path to bytes, None: absent), checked against the manifest.

    Files of the manifest that `before` leaves out are left out of the patches too.
    """
    return _proved(series, before, reverse=False)


def backward(series: Series, after: Mapping[str, bytes | None]) -> Contents:
    """What the files in `after` were before the series, checked against the manifest."""
    return _proved(series, after, reverse=True)


def contained(series: Series, target: Path) -> bool:
    """Whether every change of the series is in the files of `target` already, whatever else differs in them.

    A file that the series creates has to be there as the series makes it.
    """
    if shutil.which("git") is None:
        return False
    files = {file.path: package.content(target / file.path) for file in series.manifest.files}
    try:
        # Without --unidiff-zero git looks for a change of a file's first or last lines nowhere else.
        run(series.patches, files, "--reverse", "--unidiff-zero")
    except Problem:
        return False
    return True


def run(patches: Sequence[Path], contents: Mapping[str, bytes | None], *options: str) -> Contents:
    """What `git apply` makes of the files in `contents` with these patches; options go to git.

    With "--reverse" the last patch comes first. Raises Problem: "git", "series" where a patch does not apply.
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
            done = subprocess.run(
                [git, "apply", "--whitespace=nowarn", *options, str(patch.resolve())],
                cwd=stage,
                env=_environment(stage),
                capture_output=True,
                text=True,
                errors="replace",
            )
            if done.returncode != 0:
                raise Problem(
                    "series",
                    f"{patch.name} of the series for {patch.parent.name} does not apply: {done.stderr.strip()}",
                    REINSTALL_US,
                )
        found = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()}
        return {path: package.content(stage / path) for path in found | set(contents)}


def _proved(series: Series, contents: Mapping[str, bytes | None], *, reverse: bool) -> Contents:
    if not contents:
        return {}
    left_out = [f"--exclude={file.path}" for file in series.manifest.files if file.path not in contents]
    result = run(series.patches, contents, *(["--reverse"] if reverse else []), *left_out)
    wanted = {
        file.path: file.before if reverse else file.after for file in series.manifest.files if file.path in contents
    }
    # The hashes, not git's exit code, say whether it was done.
    got = {path: package.sha256(data) for path, data in result.items()}
    if wrong := sorted(path for path in wanted.keys() | got.keys() if wanted.get(path) != got.get(path)):
        raise Problem(
            "series",
            f"the series for {series.manifest.version} does not make of {', '.join(wrong)} what its manifest says",
            REINSTALL_US,
        )
    return result


def _environment(stage: Path) -> dict[str, str]:
    """No repository and no settings of the user's: inside a repository `git apply` skips files and exits with 0."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CEILING_DIRECTORIES": str(stage.parent),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "LC_ALL": "C",
    }
