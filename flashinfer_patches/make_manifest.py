"""Write the manifest of a series: the hashes of every file that it changes, before and after.

Run it after a change of a patch: `python -m flashinfer_patches.make_manifest 0.6.14`.
"""

import re
from pathlib import Path

import click

from flashinfer_patches import fetch, package, series, staging
from flashinfer_patches.series import PACKAGE, File, Manifest


def make(version: str, pristine: Path) -> Manifest:
    """Apply the patches of a release to copies from `pristine`, a folder with its original `flashinfer` package.

    Raises Problem: "git", "series" if a patch fails.
    """
    patches = series.patches(version)
    paths = {path for patch in patches for path in re.findall(r"^\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)}
    before = {path: package.content(pristine / path) for path in sorted(paths)}
    after = staging.run(patches, before)
    files = [File(path=path, before=package.sha256(before[path]), after=package.sha256(after[path])) for path in before]
    return Manifest(package=PACKAGE, version=version, files=files)


def text(manifest: Manifest) -> str:
    """Return the text of a manifest's file."""
    return manifest.model_dump_json(indent=1) + "\n"


@click.command()
@click.argument("version", type=click.Choice(list(fetch.WHEELS)))
def main(version):
    """Write the manifest of VERSION's series, from its wheel."""
    (series.ROOT / version / "manifest").write_text(text(make(version, fetch.pristine(version))))


if __name__ == "__main__":
    main()
