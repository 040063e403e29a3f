"""`fp8-sinks bench kernels`."""

import shlex
import sys
from datetime import datetime
from pathlib import Path

import click
from pydantic import ValidationError, model_validator
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import kinds as results
from bench.kernels import grid, measure, peers, run
from bench.record.files import write
from bench.record.run_folder import LOCK
from flashinfer_patches import locking
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from lowp.paged.shapes import Shape
from vllm_launch.terminal import signals_as_exit, talk

FOLDER = click.Path(path_type=Path, file_okay=False)


class Asked(Strict):
    """What a run was asked, kept in its folder: kernels and shapes by name, none for all."""

    kernels: list[str]
    shapes: list[str]

    @model_validator(mode="after")
    def _known(self):
        """Another commit may have other names: none may be left out silently."""
        if unknown := sorted({*self.kernels} - {*peers.names()}):
            raise ValueError(f"no kernels of this bench: {', '.join(unknown)}")
        for text in self.shapes:
            grid.parse(text)
        return self


def _shapes(_context, _option, texts: tuple[str, ...]) -> list[str]:
    try:
        return list(dict.fromkeys(str(grid.parse(text)) for text in texts))
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
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shapes,
    help="BATCHxCONTEXT, or a name that --dry-run prints, instead of the grid; repeat.",
)
@click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>.")
@click.option("--resume", type=FOLDER, help="A run folder: do what it lacks, with its kernels and shapes.")
@click.option("--dry-run", is_flag=True, help="Print what would be measured, start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def kernels_command(chosen, shapes, run_dir, resume, dry_run, as_json):
    """Time decode attention kernels on this GPU, all on the same inputs, each time with its error; minutes.

    The run's own kernel cache is wiped and every kernel built anew. fa2-sinks needs a patched FlashInfer; vLLM's
    kernels are left out, by name, where there is no vLLM. A run that was cut off goes on with --resume.
    """
    asked = _asked(chosen, shapes, run_dir, resume)
    kernels = [kernel for kernel in peers.KERNELS if not asked.kernels or kernel.name in asked.kernels]
    shapes = [grid.parse(text) for text in asked.shapes] or grid.GRID
    if dry_run:
        click.echo("\n".join(_planned(kernel, shape) for shape in shapes for kernel in kernels))
        return
    folder = (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    run.check(kernels, bool(asked.kernels))
    _create(folder, asked)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        signals_as_exit(),
        locking.held(folder / LOCK, "bench kernels", timeout_s=0),
        Progress(*columns, console=talk, transient=True) as progress,
    ):
        task = progress.add_task("preparing")
        request = measure.Request(
            kernels=kernels,
            shapes=shapes,
            folder=folder,
            command=["fp8-sinks", *sys.argv[1:]],
            say=lambda line: progress.update(task, description=line),
            done=lambda line: progress.console.print(line, highlight=False, markup=False, soft_wrap=True),
            named=bool(asked.kernels),
        )
        try:
            result = run.execute(request)
        except BaseException:
            talk.print(f"resume: fp8-sinks bench kernels --resume {shlex.quote(str(folder))}", soft_wrap=True)
            raise
    _finish(result, folder, as_json)


def _asked(chosen, shapes, run_dir: Path | None, resume: Path | None) -> Asked:
    """What to measure. Raises Problem("file") where a folder holds a run of something else, or none to resume."""
    if resume and (chosen or shapes or run_dir):
        raise click.UsageError("--resume takes kernels, shapes and folder from the run; give nothing else")
    asked = Asked(kernels=sorted(set(chosen)), shapes=shapes)
    path = (resume or run_dir or Path()) / "request.json"
    if resume or (run_dir and path.exists()):
        try:
            earlier = Asked.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            what = f"{path.parent} is no run of this bench: cannot read {path.name}"
            raise Problem("file", what, "name another folder") from error
        if run_dir and earlier != asked:
            what = f"{path.parent} holds a run of other kernels or shapes than asked now"
            raise Problem("file", what, f"go on with it: --resume {path.parent}; or choose another --run-dir")
        return earlier
    return asked


def _planned(kernel: peers.Kernel, shape: Shape) -> str:
    if reason := kernel.lacks(shape):
        return f"{shape!s:18} {kernel!s:18} left out: {reason}"
    size, layers = grid.kv_bytes(shape, kernel.kv_format), grid.layers(shape)
    return (
        f"{shape!s:18} {kernel!s:18} {size / 1e6:9,.1f} MB of KV cache a call, {layers:4} layers in turn"
        f" ({size * layers / 1e6:,.0f} MB); settings: {', '.join(kernel.settings)}"
    )


def _create(folder: Path, asked: Asked) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "request.json").exists():
        what = f"{folder} is not empty, and holds no run of this bench"  # whose caches would be wiped
        raise Problem("file", what, "choose another --run-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(asked, folder / "request.json")
    except OSError as error:
        remedy = "choose another --run-dir, or mend its rights"
        raise Problem("disk", f"cannot create {folder}: {error.strerror}", remedy) from error


def _finish(result: results.KernelsResult, folder: Path, as_json: bool) -> None:
    """Write result and report, and print where they are. Raises Problem("software") where no kernel ran at all."""
    from bench.report import document  # brings matplotlib

    write(result, folder / "result.json")
    path = document.write([folder / "result.json"], folder, name="report.md")
    talk.print(f"result: {folder / 'result.json'}\nreport: {path}", soft_wrap=True, highlight=False, markup=False)
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    errors = [row.error for row in result.rows if row.error]
    if len(errors) == len(result.rows):
        first = f"the first: {errors[0]}" if errors else "none of those asked is measured at these shapes"
        remedy = "the report has every kernel's error; without a compiler: install CUDA's toolkit and ninja"
        raise Problem("software", f"no kernel ran; {first}", remedy)
