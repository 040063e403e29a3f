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
    help="Folder that has a flashinfer package. Default: the installed one, or else the copy of `make patch`.",
)


@click.group()
def patch() -> None:
    """Patch FlashInfer for attention sinks with an FP8 KV cache, or revert the patch.

    Exit codes: 0 done; 1 a patch of the series fails; 2 usage; 4 no supported FlashInfer, edited files, no git, not
    writable, or locked.
    """


@patch.command()
@target
@as_json
def status(target, as_json):
    """Print the state of FlashInfer: clean, applied, partial, superseded, unknown version or edited."""
    _print(engine.status(_target(target)), as_json)


@patch.command()
@target
@as_json
def check(target, as_json):
    """Apply the series to copies: exit with 0 if it applies or is applied. Changes nothing."""
    _print(engine.check(_target(target)), as_json)


@patch.command()
@target
@as_json
def apply(target, as_json):
    """Apply the series, or finish an interrupted apply or revert; does nothing if it is applied."""
    _print(engine.apply(_target(target)), as_json)


@patch.command()
@target
@as_json
def revert(target, as_json):
    """Restore the release's exact bytes, also after an interrupted apply or revert."""
    _print(engine.revert(_target(target)), as_json)


def _target(target: Path | None) -> Path | None:
    """Return the folder to patch: `target`, or None for the installed FlashInfer, or the copy of `make patch`."""
    if target is None and package.installed() is None and (copy := fetch.copy()):
        click.echo("no FlashInfer is installed in this environment: using the copy of `make patch`", err=True)
        return copy
    return target


def _print(status: Status, as_json: bool) -> None:
    if status.patched_source:
        click.echo(
            f"warning: files of {status.target} link to {status.patched_source}, which an older fp8-sinks patched for"
            " every environment that shares it\n"
            f"  remedy: fp8-sinks patch apply in each environment that needs it; then fp8-sinks patch revert --target"
            f" {status.patched_source}",
            err=True,
        )
    if as_json:
        click.echo(status.model_dump_json(indent=2))
        return
    counts = ", ".join(f"{count} {state}" for state, count in sorted(Counter(status.files.values()).items()))
    click.echo(f"{status.state}: FlashInfer {status.version} in {status.target}" + (f" ({counts})" if counts else ""))
    if status.patch_set:
        click.echo(f"patch set {status.patch_set}")
    for path, state in status.files.items():
        if status.state in ("partial", "edited"):
            click.echo(f"{state:8} {path}")
