"""`fp8-sinks bench engine`."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import get_args

import click

from bench.engine import cells, joining, run, variants
from bench.engine.cells import Cell
from bench.engine.environment import problems
from bench.engine.models import SHAPES
from bench.engine.request import EngineRequest, EngineRun, resolve
from bench.engine.result import Compilation, EngineResult, Routing
from bench.record import run_folder
from bench.record.command import run_in_folder, run_options
from flashinfer_patches.errors import Problem
from vllm_launch import software
from vllm_launch.terminal import exit_on_problems

SECONDS = 540.0
STARTS, STEPS = 2, 40
# Assumed of an H200 with gpt-oss-120b's shape, for --dry-run; starts by compilation: with empty caches, and after.
START_S = {"none": (110.0, 30.0), "default": (300.0, 60.0)}
CEILING_S, CELL_S, STEP_S = 15.0, 1.0, 0.015
PREFILL_TOKENS_S = 20_000.0
TTFT_PROMPTS = 2.5
PROMPT_S = 1e-6  # a token of a prompt that is made, hashed, and not prefilled


def _cells(_context, _option, text: str | None) -> list[str]:
    try:
        return list(dict.fromkeys(str(cells.parse(name)) for name in text.split(","))) if text else []
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("engine")
@click.argument("names", nargs=-1, metavar="[VARIANT]...", type=click.Choice(variants.NAMES))
@click.option("--shape", type=click.Choice([*SHAPES]), help="Model whose shape is run. [default: gpt-oss-120b]")
@click.option("--cells", "cell_names", callback=_cells, help="BATCHxCONTEXT and full, each also -half: 8x32768,full.")
@click.option("--starts", type=click.IntRange(1), help=f"Starts of each engine. [default: {STARTS}]")
@click.option("--steps", type=click.IntRange(2), help=f"Decode steps of each cell. [default: {STEPS}]")
@click.option(
    "--seconds", type=click.FloatRange(1), default=SECONDS, show_default=True, help="End after; then --resume."
)
@click.option("--compilation", type=click.Choice(get_args(Compilation)), help="vLLM's, or none. [default: default]")
@click.option(
    "--routing",
    type=click.Choice(get_args(Routing)),
    help="Tokens over all experts, or as dummy weights. [default: spread]",
)
@click.option("--tensor-parallel", type=click.IntRange(1), help="GPUs of each engine. [default: 1]")
@click.option("--prefill", is_flag=True, help="Prefill each prompt, instead of assuming it in the cache.")
@click.option(
    "--profile", is_flag=True, help="Also list the kernels of a step at the cell where our backend gains least."
)
@run_options("several pieces")
@click.pass_obj
def engine_command(write_report, run_dir, resume, joined, dry_run, as_json, seconds, **options):
    """Time decode steps of vLLM's engine with a model's shape and dummy weights: VARIANTs against stock BF16.

    All of a run is one piece: stock BF16 and the variants on one machine, whose ratios hold. Without a variant all are
    measured. An engine that dies costs one cell. Ends after --seconds; --resume goes on.
    """
    folder = (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    named = any(options.values())
    if joined:
        if named or resume or dry_run:
            raise click.UsageError("--join takes results and --run-dir alone")
        joining.write(joined, folder)
        click.echo(f"result: {folder / 'result.json'}\nreport: {write_report(folder)}")
        return
    if resume and (named or run_dir):
        raise click.UsageError("--resume takes what it measures, and the folder, from the run; give --seconds alone")
    request = run_folder.read_request(resume, "engine", EngineRequest) if resume else _request(**options)
    device, vllm = software.vllm_build()
    resolved = resolve(folder, request, device, vllm, seconds)
    if dry_run:
        click.echo("\n".join(_plan(resolved)))
        for problem in problems(resolved):
            problem.show()
        return
    exit_on_problems(problems(resolved))
    command = ["fp8-sinks", *sys.argv[1:]]
    result = run_in_folder(
        folder, request, lambda display: run.execute(replace(resolved, **display._asdict()), command), write_report
    )
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    if result.left_out:
        words = shlex.join(["fp8-sinks", "bench", "engine", "--resume", str(folder)])
        click.echo(f"{len(result.left_out)} cells left; resume: {words}", err=True)
    _check_measured(result)


def _request(
    names, shape, cell_names, starts, steps, compilation, routing, tensor_parallel, prefill, profile
) -> EngineRequest:
    return EngineRequest(
        kind="engine",
        variants=[variant.name for variant in variants.VARIANTS if variant.name in names],
        cells=cell_names,
        shape=shape or "gpt-oss-120b",
        compilation=compilation or "default",
        routing=routing or "spread",
        starts=starts or STARTS,
        steps=steps or STEPS,
        tensor_parallel=tensor_parallel or 1,
        prefill=prefill,
        profile=profile,
    )


def _plan(run: EngineRun) -> Iterator[str]:
    """A line for each start of each engine, and one for the run."""
    for variant, start in run.engines():
        yield f"{variant.name:24} start {start}: {', '.join(map(str, run.cells_of_start(start)))}"
    expected = expected_seconds(run)
    pieces = -(-expected // run.seconds)
    yield f"{len(run.engines())} starts, about {expected:.0f} s: {pieces:.0f} executions of {run.seconds:.0f} s"


def expected_seconds(run: EngineRun) -> float:
    """About how long a run takes that measures everything anew."""
    engines = run.engines()
    first_s, start_s = START_S[run.request.compilation]
    starts = first_s + start_s * (len(engines) - 1)
    cells = sum(_cell_seconds(run, cell) for _, start in engines for cell in run.cells_of_start(start))
    profiles = 2 * (start_s + CELL_S) if run.request.profile else 0
    return CEILING_S + starts + cells + profiles


def _cell_seconds(run: EngineRun, cell: Cell) -> float:
    batch = cell.batch or 64
    tokens = batch * cell.context
    prefill = tokens / PREFILL_TOKENS_S if run.request.prefill else tokens * PROMPT_S
    first = TTFT_PROMPTS * cell.context / PREFILL_TOKENS_S if batch == 1 else 0
    return CELL_S + (run.request.steps + 12) * STEP_S + prefill + first


def _check_measured(result: EngineResult) -> None:
    """Raise Problem("server") where no cell was measured."""
    errors = [row.error for row in result.rows if row.error]
    if errors and len(errors) == len(result.rows):
        raise Problem("server", f"no cell was measured; first error: {errors[0]}", "read the logs in the run folder")
