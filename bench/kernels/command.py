"""`fp8-sinks bench kernels`."""

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from bench.kernels import grid, peers, run
from bench.kernels.environment import problems
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRequest, resolve
from bench.kernels.result import KernelsResult
from bench.record import run_folder
from bench.record.command import run_in_folder
from flashinfer_patches.errors import Problem
from lowp.paged.shapes import Shape
from vllm_launch.terminal import exit_on_problems

FOLDER = click.Path(path_type=Path, file_okay=False)


def _shape_names(_context, _option, names: tuple[str, ...]) -> list[str]:
    try:
        return list(dict.fromkeys(str(grid.parse(name)) for name in names))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("kernels")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(peers.names()),
    help="Only this kernel, in every storage format that it has; repeat for several.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_shape_names,
    help="BATCHxCONTEXT, or a name that --dry-run prints, instead of the grid; repeat.",
)
@click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>.")
@click.option("--resume", type=FOLDER, help="Finish the run in this folder; takes kernels and shapes from it.")
@click.option("--dry-run", is_flag=True, help="Print what would be measured, check the environment, start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_obj
def kernels_command(write_report, kernels, shapes, run_dir, resume, dry_run, as_json):
    """Time decode attention kernels on this GPU, all on the same inputs, each time with its error; minutes.

    The run's own kernel cache is wiped and every kernel built anew. fa2-sinks needs a patched FlashInfer; vLLM's
    kernels are skipped where vLLM is not installed. Finish an interrupted run with --resume.
    """
    if resume:
        request = _resumed(kernels, shapes, run_dir, resume)
    else:
        request = KernelsRequest(kind="kernels", kernels=sorted(set(kernels)), shapes=shapes)
    folder = (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    resolved = resolve(folder, request)
    if dry_run:
        click.echo("\n".join(_plan(kernel, shape) for shape in resolved.shapes for kernel in resolved.kernels))
    exit_on_problems(problems(resolved))
    if dry_run:
        return
    command = ["fp8-sinks", *sys.argv[1:]]
    result = run_in_folder(
        folder,
        request,
        lambda display: run.execute(replace(resolved, **display._asdict()), command),
        write_report,
    )
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    _check_measured(result)


def _resumed(kernels, shapes, run_dir: Path | None, resume: Path) -> KernelsRequest:
    if kernels or shapes or run_dir:
        raise click.UsageError("--resume takes kernels, shapes and folder from the run; give nothing else")
    return run_folder.read_request(resume, "kernels", KernelsRequest)


def _plan(kernel: DecodeKernel, shape: Shape) -> str:
    if reason := kernel.skip_reason(shape):
        return f"{shape!s:18} {kernel!s:18} skipped: {reason}"
    size, layers = grid.kv_bytes(shape, kernel.kv_format), grid.layers(shape)
    return (
        f"{shape!s:18} {kernel!s:18} {size / 1e6:9,.1f} MB of KV cache per call, {layers:4} layers in rotation"
        f" ({size * layers / 1e6:,.0f} MB); settings: {', '.join(kernel.settings)}"
    )


def _check_measured(result: KernelsResult) -> None:
    """Raise Problem("software") where no kernel ran at all."""
    errors = [row.error for row in result.rows if row.error]
    if len(errors) == len(result.rows):
        reason = f"first error: {errors[0]}" if errors else "no requested kernel is measured at these shapes"
        remedy = "the report has every kernel's error; without a compiler: install the CUDA toolkit and ninja"
        raise Problem("software", f"no kernel ran; {reason}", remedy)
