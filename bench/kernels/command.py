"""`fp8-sinks bench kernels`."""

import sys
from datetime import datetime
from pathlib import Path

import click
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import result as results
from bench.kernels import grid, measure, peers
from vllm_launch.cli import signals_as_exit, talk
from vllm_launch.errors import Problem


def _shape(_context, _option, texts: tuple[str, ...]) -> list[grid.Shape]:
    try:
        return [grid.parse(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("kernels")
@click.option(
    "--kernel",
    "chosen",
    multiple=True,
    type=click.Choice(peers.names()),
    help="Only this kernel, in every storage format that it has; repeat for several.",
)
@click.option("--shape", "shapes", multiple=True, callback=_shape, help="BATCHxCONTEXT instead of the grid; repeat.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where everything is written; default runs/<time>.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be measured, start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def kernels_command(chosen, shapes, run_dir, dry_run, as_json):
    """Time decode attention kernels on this GPU, all on the same inputs, each time with its error; minutes.

    The run's own kernel cache is wiped and every kernel built anew. fa2-sinks needs a patched FlashInfer.
    """
    kernels = [kernel for kernel in peers.KERNELS if not chosen or kernel.name in chosen]
    shapes = list(dict.fromkeys(shapes)) or grid.GRID
    if dry_run:
        click.echo("\n".join(_planned(kernel, shape) for shape in shapes for kernel in kernels))
        return
    folder = (run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    measure.check(kernels)
    _create(folder)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with signals_as_exit(), Progress(*columns, console=talk, transient=True) as progress:
        task = progress.add_task("preparing")
        result = measure.execute(
            measure.Request(
                kernels=kernels,
                shapes=shapes,
                folder=folder,
                command=["fp8-sinks", *sys.argv[1:]],
                say=lambda line: progress.update(task, description=line),
                done=lambda line: progress.console.print(line, highlight=False, markup=False, soft_wrap=True),
            )
        )
    _finish(result, folder, as_json)


def _planned(kernel: peers.Kernel, shape: grid.Shape) -> str:
    size, layers = grid.kv_bytes(shape, kernel.kv_format), grid.layers(shape)
    return (
        f"{shape!s:9} {kernel!s:18} {size / 1e6:9,.1f} MB of KV cache a call, {layers:4} layers in turn"
        f" ({size * layers / 1e6:,.0f} MB); settings: {', '.join(kernel.settings)}"
    )


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "choose another --run-dir, or mend its rights"
        raise Problem("disk", f"cannot create {folder}: {error.strerror}", remedy) from error


def _finish(result: results.KernelsResult, folder: Path, as_json: bool) -> None:
    """Write result and report, and print where they are. Raises Problem("software") where no kernel ran at all."""
    from bench import report  # brings matplotlib

    results.write(result, folder / "result.json")
    path = report.write([folder / "result.json"], folder, name="report.md")
    talk.print(f"result: {folder / 'result.json'}\nreport: {path}", soft_wrap=True, highlight=False, markup=False)
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    errors = [row.error for row in result.rows if row.error]
    if len(errors) == len(result.rows):
        remedy = "the report has every kernel's error; without a compiler: install CUDA's toolkit and ninja"
        raise Problem("software", f"no kernel ran; the first: {errors[0]}", remedy)
