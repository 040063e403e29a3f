"""`fp8-sinks patch` and `fp8-sinks cache`."""

import json
from collections import Counter
from pathlib import Path

import click

from flashinfer_patches import engine, jit_cache, sink_kernels
from flashinfer_patches.state import Status

as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
target = click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="Folder that holds a flashinfer package, instead of the installed one.",
)
root = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=jit_cache.ROOT,
    help="Folder that holds the caches, not ~/.cache/fp8-sinks/flashinfer; a run's is runs/<id>/cache/flashinfer.",
)


@click.group()
def patch() -> None:
    """Give FlashInfer attention sinks with an FP8 KV cache, or take that out again.

    Exit codes: 40 no FlashInfer there; 41 release without a series; 42 edited files; 43 upstream has it; 44 no git;
    45 cannot be written; 46 locked; 47 broken series.
    """


@patch.command()
@target
@as_json
def status(target, as_json):
    """Print what the FlashInfer is: clean, applied, partial, superseded, unknown version or edited."""
    _print(engine.status(target), as_json)


@patch.command()
@target
@as_json
def check(target, as_json):
    """Apply the series to copies: exits with 0 if it is applied or would be. Changes nothing."""
    _print(engine.check(target), as_json)


@patch.command()
@target
@as_json
def apply(target, as_json):
    """Apply the series; finishes an interrupted apply or revert; does nothing where it is applied."""
    _print(engine.apply(target), as_json)


@patch.command()
@target
@as_json
def revert(target, as_json):
    """Restore the release's exact bytes; finishes an interrupted apply or revert."""
    _print(engine.revert(target), as_json)


def _print(found: Status, as_json: bool) -> None:
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


@click.group()
def cache() -> None:
    """The compiled kernels of a FlashInfer: one folder for each patch set, release, torch and CUDA.

    Exit codes: 40 no FlashInfer; 42 half patched; 45 cannot be written; 46 being built into; 47 broken series; 48 not a
    cache of ours, or hidden by prebuilt kernels; 50 cannot be compiled.
    """


@cache.command()
@root
@as_json
def path(root, as_json):
    """Print the folder for the kernels of the installed FlashInfer (FLASHINFER_WORKSPACE_BASE)."""
    found = jit_cache.workspace(root)
    click.echo(json.dumps({"path": str(found)}) if as_json else found)


@cache.command()
@root
@as_json
def build(root, as_json):
    """Compile the sink kernels that gpt-oss needs (BF16 query, BF16 and E4M3 KV cache, head_dim 64) for this GPU.

    For programs that call the patched FlashInfer: start them with FLASHINFER_WORKSPACE_BASE set to what
    `fp8-sinks cache path` prints, and none of them waits for a compiler. What is compiled already stays.
    """
    found = sink_kernels.build(root)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    for one in found.modules:
        click.echo(f"{one.name}: " + (f"built in {one.seconds:.1f} s" if one.built else "there already"))
    click.echo(found.path)


@cache.command("list")
@root
@as_json
def list_(root, as_json):
    """Print every cache of ours below --root."""
    found = jit_cache.caches(root)
    if as_json:
        click.echo(json.dumps([one.model_dump(mode="json") for one in found], indent=2))
        return
    for one in found:
        state = "interrupted" if one.interrupted else f"{len(one.built)} built"
        click.echo(f"{one.path}  {one.bytes / (1 << 20):.1f} MiB  {state}")


@cache.command()
@root
@as_json
def wipe(root, as_json):
    """Remove every cache of ours below --root, and nothing else."""
    freed = {}
    for one in jit_cache.caches(root):
        freed[str(one.path)] = bytes_ = jit_cache.wipe(one.path)
        if not as_json:  # at once: the next cache may be locked
            click.echo(f"{one.path}  {bytes_ / (1 << 20):.1f} MiB freed")
    left = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    if left:
        click.echo(f"left alone in {root}, not caches of ours: {', '.join(left)}", err=True)
    if as_json:
        click.echo(json.dumps(freed, indent=2))
