"""`fp8-sinks patch`."""

from collections import Counter
from pathlib import Path

import click

from flashinfer_patches import engine, fetch, package
from flashinfer_patches.state import Status

as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
target = click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="Folder that holds a flashinfer package, instead of the installed one, or else of the copy of `make patch`.",
)


@click.group()
def patch() -> None:
    """Give FlashInfer attention sinks with an FP8 KV cache, or take that out again.

    Exit codes: 40 no FlashInfer there, or one in a folder that others share; 41 release without a series; 42 edited
    files; 43 upstream has it; 44 no git; 45 cannot be written; 46 locked; 47 broken series.
    """


@patch.command()
@target
@as_json
def status(target, as_json):
    """Print what the FlashInfer is: clean, applied, partial, superseded, unknown version or edited."""
    _print(engine.status(_target(target)), as_json)


@patch.command()
@target
@as_json
def check(target, as_json):
    """Apply the series to copies: exits with 0 if it is applied or would be. Changes nothing."""
    _print(engine.check(_target(target)), as_json)


@patch.command()
@target
@as_json
def apply(target, as_json):
    """Apply the series; finishes an interrupted apply or revert; does nothing where it is applied."""
    _print(engine.apply(_target(target)), as_json)


@patch.command()
@target
@as_json
def revert(target, as_json):
    """Restore the release's exact bytes; finishes an interrupted apply or revert."""
    _print(engine.revert(_target(target)), as_json)


def _target(target: Path | None) -> Path | None:
    """The folder to work on: the one that was named, else the installed FlashInfer's (None), else that of our copy."""
    if target is None and package.installed() is None and (copy := fetch.copy()):
        click.echo("no FlashInfer is installed in this environment: this is the copy that `make patch` made", err=True)
        return copy
    return target


def _print(found: Status, as_json: bool) -> None:
    if found.patched_source:
        click.echo(
            f"warning: files of {found.target} are symbolic links into {found.patched_source}, which an older fp8-sinks"
            " patched for every environment that shares it\n"
            f"  remedy: fp8-sinks patch apply in those that need it; then fp8-sinks patch revert --target"
            f" {found.patched_source}",
            err=True,
        )
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(found.files.values()).items()))
    click.echo(f"{found.state}: FlashInfer {found.version} in {found.target}" + (f" ({counts})" if counts else ""))
    if found.patch_set:
        click.echo(f"patch set {found.patch_set}")
    for path, state in found.files.items():
        if found.state in ("partial", "edited"):
            click.echo(f"{state:8} {path}")
