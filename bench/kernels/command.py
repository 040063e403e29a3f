"""`fp8-sinks bench kernels`."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import click
from pydantic import ValidationError

from bench.kernels import estimate, grid, joining, peers, run
from bench.kernels.environment import problems
from bench.kernels.grid import Point
from bench.kernels.peers import DecodeKernel
from bench.kernels.request import KernelsRequest, KernelsRun, part_of, resolve
from bench.kernels.result import GridName, KernelsResult
from bench.record import run_folder
from bench.record.command import run_in_folder, run_options
from bench.record.files import write
from flashinfer_patches.errors import Problem
from flashinfer_patches.files import writing
from vllm_launch.terminal import exit_on_problems


def _part(_context, _option, text: str | None) -> str | None:
    try:
        return text and "{}/{}".format(*part_of(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("kernels")
@click.option(
    "--kernel",
    "kernels",
    multiple=True,
    type=click.Choice(peers.names()),
    help="Only this kernel; repeat for several.",
)
@click.option(
    "--kv-format",
    "kv_formats",
    multiple=True,
    type=click.Choice(grid.KV_FORMATS),
    help="Only caches in this storage format; repeat for several.",
)
@click.option(
    "--grid",
    "grids",
    multiple=True,
    type=click.Choice(get_args(GridName)),
    help="Shapes to measure: the standard ones (default), those of a server, or 200 random ones; repeat for several.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    help="A name that --dry-run prints, or BATCHxCONTEXT, instead of the whole grid; repeat.",
)
@click.option("--part", callback=_part, metavar="I/N", help="Part I of N of the grids; --join makes one result of all.")
@click.option(
    "--validate",
    is_flag=True,
    help="Time nothing: the error of attention by storage format and scales, and whether each ships, on a CPU.",
)
@run_options("all parts")
@click.pass_obj
def kernels_command(
    write_report, kernels, kv_formats, grids, shapes, part, run_dir, resume, joined, validate, dry_run, as_json
):
    """Time decode attention kernels on this GPU, all on the same inputs, each time with its error; minutes.

    The run's own kernel cache is wiped and every kernel built anew. fa2-sinks needs a patched FlashInfer; vLLM's
    kernels are skipped where vLLM is not installed. Finish an interrupted run with --resume.
    """
    folder = (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    named = bool(kernels or kv_formats or grids or shapes or part)
    if validate:
        if named or resume or joined or dry_run:
            raise click.UsageError("--validate takes --run-dir and --json alone")
        _validate(folder, as_json)
        return
    if joined:
        if named or resume or dry_run:
            raise click.UsageError("--join takes results and --run-dir alone")
        joining.write(joined, folder)
        click.echo(f"result: {folder / 'result.json'}\nreport: {write_report(folder)}")
        return
    if resume and (named or run_dir):
        raise click.UsageError("--resume takes what it measures, and the folder, from the run; give nothing else")
    request = (
        run_folder.read_request(resume, "kernels", KernelsRequest)
        if resume
        else _request(kernels, kv_formats, grids, shapes, part)
    )
    resolved = resolve(folder, request)
    if dry_run:
        click.echo("\n".join(_plan(resolved)))
        for problem in problems(resolved):
            problem.show()
        return
    exit_on_problems(problems(resolved))
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


def _request(kernels, kv_formats, grids, shapes, part: str | None) -> KernelsRequest:
    grids = list(dict.fromkeys(grids)) or ["standard"]
    if shapes and part:
        raise click.UsageError("--part is of whole grids; give no --shape")
    try:
        names = list(dict.fromkeys(str(grid.parse(name, grids).shape) for name in shapes))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shape") from error
    names_of = {"kernels": sorted(set(kernels)), "kv_formats": sorted(set(kv_formats)), "shapes": names}
    try:
        return KernelsRequest(kind="kernels", **names_of, grids=grids, part=part)
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"]) from error


def _validate(folder: Path, as_json: bool) -> None:
    """Write folder/validation.json and its plot, and print its rows."""
    if missing := [name for name in ("torch", "transformers") if not find_spec(name)]:
        raise Problem("software", f"not installed: {', '.join(missing)}", "make setup; vLLM brings it")
    from bench.kernels import attention_rows, validation

    path = folder / "validation.json"
    if path.exists():
        raise Problem("file", f"{path} exists", "choose another --run-dir")
    result = validation.run(["fp8-sinks", *sys.argv[1:]])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write(result, path)
        attention_rows.plot(result.attention, folder / "validation.png")
    table = [*validation.lines(result.rows), "", *attention_rows.lines(result.attention)]
    click.echo(result.model_dump_json(indent=1) if as_json else "\n".join(table))
    click.echo(f"result: {path}", err=True)


def _plan(run: KernelsRun) -> Iterator[str]:
    """A line for each kernel at each standard shape, one for each other shape, and one for the whole run."""
    rows = 0
    for point in run.points:
        kernels = [kernel for kernel in run.kernels if not kernel.skip_reason(point)]
        rows += len(kernels)
        if point.grid == "standard":
            yield from (_kernel_plan(kernel, point) for kernel in run.kernels)
        else:
            yield _served_plan(point, kernels)
    yield f"{len(run.points)} shapes, {rows} rows, about {estimate.seconds(run):.0f} s"


def _kernel_plan(kernel: DecodeKernel, point: Point) -> str:
    shape = point.shape
    if reason := kernel.skip_reason(point):
        return f"{shape!s:18} {kernel!s:18} skipped: {reason}"
    size, layers = grid.kv_bytes(shape, kernel.kv_format), grid.layers(shape)
    return (
        f"{shape!s:18} {kernel!s:18} {size / 1e6:9,.1f} MB of KV cache per call, {layers:4} layers in rotation"
        f" ({size * layers / 1e6:,.0f} MB); settings: {', '.join(kernel.settings)}"
    )


def _served_plan(point: Point, kernels: list[DecodeKernel]) -> str:
    shape = point.shape
    size, calls = grid.kv_bytes(shape, grid.BASE), grid.served_calls(shape)
    names = ", ".join(map(str, kernels))
    return f"{point.grid} {shape!s:42} {size / 1e6:9,.2f} MB of KV cache in bf16, {calls:3} calls a graph: {names}"


def _check_measured(result: KernelsResult) -> None:
    """Raise Problem("software") where no kernel ran at all."""
    errors = [row.error for row in result.rows if row.error]
    if len(errors) == len(result.rows):
        reason = f"first error: {errors[0]}" if errors else "no requested kernel is measured at these shapes"
        remedy = "the report has every kernel's error; without a compiler: install the CUDA toolkit and ninja"
        raise Problem("software", f"no kernel ran; {reason}", remedy)
