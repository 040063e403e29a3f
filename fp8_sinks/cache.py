"""`fp8-sinks cache`: the compiled kernels of FlashInfer and our own, each kept by its room."""

import json
from pathlib import Path

import click

from flashinfer_patches import jit_cache, sink_kernels
from flashinfer_patches.errors import writing
from lowp.jit import kernel_cache

as_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
flashinfer_root = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=jit_cache.ROOT,
    help="Folder that holds FlashInfer's caches, not ~/.cache/fp8-sinks/flashinfer; a run's is"
    " runs/<id>/cache/flashinfer.",
)
any_root = click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder that holds caches, not ~/.cache/fp8-sinks/flashinfer and FP8_SINKS_KERNEL_CACHE (by default"
    " ~/.cache/fp8-sinks/lowp); a run's are runs/<id>/cache/flashinfer and runs/<id>/cache/lowp.",
)


@click.group()
def cache() -> None:
    """Compiled kernels: of FlashInfer, one folder for each patch set, release, torch and CUDA, and of our own.

    Exit codes: 40 no FlashInfer; 42 half patched; 45 cannot be written; 46 being built into; 47 broken series; 48 not a
    cache of ours, or hidden by prebuilt kernels; 50 cannot be compiled.
    """


@cache.command()
@flashinfer_root
@as_json
def path(root, as_json):
    """Print the folder for the kernels of the installed FlashInfer (FLASHINFER_WORKSPACE_BASE).

    With --json also where our own kernels are, which need no setting.
    """
    found = str(jit_cache.workspace(root))
    click.echo(json.dumps({"path": found, "lowp": str(kernel_cache.root())}) if as_json else found)


@cache.command()
@flashinfer_root
@as_json
def build(root, as_json):
    """Compile the sink kernels that gpt-oss needs (BF16 query, BF16 and E4M3 KV cache, head_dim 64) for this GPU.

    For programs that call the patched FlashInfer: start them with FLASHINFER_WORKSPACE_BASE set to what
    `fp8-sinks cache path` prints, and none of them waits for a compiler. What is compiled already stays. Our own
    kernels need no building: each is compiled by its first call, in a second or less.
    """
    found = sink_kernels.build(root)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
        return
    for one in found.modules:
        click.echo(f"{one.name}: " + (f"built in {one.seconds:.1f} s" if one.built else "there already"))
    click.echo(found.path)


@cache.command("list")
@any_root
@as_json
def list_(root, as_json):
    """Print every cache of ours: FlashInfer's kernels, and our own."""
    caches = [one for folder in _roots(root) for one in _caches(folder)]
    if as_json:
        click.echo(json.dumps([one.model_dump(mode="json") for one in caches], indent=2))
        return
    for one in caches:
        state = "interrupted" if one.interrupted else f"{len(one.built)} built"
        click.echo(f"{one.path}  {one.bytes / (1 << 20):.1f} MiB  {state}")


@cache.command()
@any_root
@as_json
def wipe(root, as_json):
    """Remove every cache of ours, and nothing else."""
    freed = {}
    for folder in _roots(root):
        for one in jit_cache.caches(folder):
            freed[str(one.path)] = jit_cache.wipe(one.path)
            _say_freed(one.path, freed, as_json)
        for one in kernel_cache.caches(folder):
            with writing(one.path):
                freed[str(one.path)] = kernel_cache.wipe(one.path)
            _say_freed(one.path, freed, as_json)
        if left := sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
            click.echo(f"left alone in {folder}, not or not only ours: {', '.join(left)}", err=True)
    if as_json:
        click.echo(json.dumps(freed, indent=2))


def _say_freed(path: Path, freed: dict[str, int], as_json: bool) -> None:
    if not as_json:  # at once: the next cache may be locked
        click.echo(f"{path}  {freed[str(path)] / (1 << 20):.1f} MiB freed")


def _roots(root: Path | None) -> list[Path]:
    return [root] if root else [jit_cache.ROOT, kernel_cache.root()]


def _caches(folder: Path) -> list[jit_cache.Cache]:
    """FlashInfer's caches in a folder, then our own kernels', which are never half built."""
    ours = [
        jit_cache.Cache(path=one.path, bytes=one.bytes, built=one.kernels, interrupted=False)
        for one in kernel_cache.caches(folder)
    ]
    return [*jit_cache.caches(folder), *ours]
