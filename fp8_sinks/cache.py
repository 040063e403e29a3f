"""`fp8-sinks cache`: the caches of compiled kernels, FlashInfer's and our own."""

import json
from pathlib import Path

import click

from flashinfer_patches import jit_cache, sink_kernels
from flashinfer_patches.files import writing
from lowp.jit import kernel_cache

as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
flashinfer_root = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=jit_cache.ROOT,
    help="Folder of FlashInfer's caches. Default: ~/.cache/fp8-sinks/flashinfer; that of a run:"
    " runs/<id>/cache/flashinfer.",
)
any_root = click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of caches. Default: ~/.cache/fp8-sinks/flashinfer and FP8_SINKS_KERNEL_CACHE (by default"
    " ~/.cache/fp8-sinks/lowp); those of a run: runs/<id>/cache/flashinfer and runs/<id>/cache/lowp.",
)


@click.group()
def cache() -> None:
    """List, build and wipe the caches of compiled kernels, FlashInfer's and our own.

    FlashInfer's kernels have a folder for each patch set, release, torch and CUDA.

    Exit codes: 0 done; 1 broken series; 2 usage; 4 no FlashInfer, partially patched, hidden by prebuilt kernels, no
    compiler, not writable, locked, or no cache of ours.
    """


@cache.command()
@flashinfer_root
@as_json
def path(root, as_json):
    """Print the folder for the kernels of the installed FlashInfer (FLASHINFER_WORKSPACE_BASE).

    With --json also the folder of our own kernels, which needs no variable.
    """
    workspace = str(jit_cache.workspace(root))
    click.echo(json.dumps({"path": workspace, "lowp": str(kernel_cache.root())}) if as_json else workspace)


@cache.command()
@flashinfer_root
@as_json
def build(root, as_json):
    """Compile the sink kernels that gpt-oss needs (BF16 query, BF16 and E4M3 KV cache, head_dim 64) for this GPU.

    For programs that call the patched FlashInfer: start them with FLASHINFER_WORKSPACE_BASE set to the output of
    `fp8-sinks cache path`, and they do not wait for a compiler. Compiled kernels are not compiled again. Our own
    kernels need no build: each is compiled by its first call, in a second or less.
    """
    kernels = sink_kernels.build(root)
    if as_json:
        click.echo(kernels.model_dump_json(indent=2))
        return
    for module in kernels.modules:
        click.echo(f"{module.name}: " + (f"built in {module.seconds:.1f} s" if module.built else "cached"))
    click.echo(kernels.path)


@cache.command("list")
@any_root
@as_json
def list_(root, as_json):
    """List the caches of FlashInfer's kernels and of our own."""
    caches = [entry for folder in _roots(root) for entry in _caches(folder)]
    if as_json:
        click.echo(json.dumps([entry.model_dump(mode="json") for entry in caches], indent=2))
        return
    for entry in caches:
        state = "interrupted" if entry.interrupted else f"{len(entry.built)} built"
        click.echo(f"{entry.path}  {entry.bytes / (1 << 20):.1f} MiB  {state}")


@cache.command()
@any_root
@as_json
def wipe(root, as_json):
    """Remove the compiled kernels of FlashInfer and our own, and no other file."""
    freed = {}
    for folder in _roots(root):
        for entry in jit_cache.caches(folder):
            freed[str(entry.path)] = jit_cache.wipe(entry.path)
            _print_freed(entry.path, freed, as_json)
        for entry in kernel_cache.caches(folder):
            with writing(entry.path):
                freed[str(entry.path)] = kernel_cache.wipe(entry.path)
            _print_freed(entry.path, freed, as_json)
        if left := sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
            click.echo(f"left in {folder}, with files that are not ours: {', '.join(left)}", err=True)
    if as_json:
        click.echo(json.dumps(freed, indent=2))


def _print_freed(path: Path, freed: dict[str, int], as_json: bool) -> None:
    if not as_json:  # before the next cache, which may be locked
        click.echo(f"{path}  {freed[str(path)] / (1 << 20):.1f} MiB freed")


def _roots(root: Path | None) -> list[Path]:
    return [root] if root else [jit_cache.ROOT, kernel_cache.root()]


def _caches(folder: Path) -> list[jit_cache.Cache]:
    """List FlashInfer's caches in a folder, then those of our own kernels, which are never incomplete."""
    ours = [
        jit_cache.Cache(path=entry.path, bytes=entry.bytes, built=entry.kernels, interrupted=False)
        for entry in kernel_cache.caches(folder)
    ]
    return [*jit_cache.caches(folder), *ours]
