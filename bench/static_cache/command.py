"""`fp8-sinks bench static-cache`."""

import sys
from datetime import datetime
from pathlib import Path

import click

from bench.record import run_folder
from bench.record.command import FOLDER, run_in_folder
from bench.static_cache import run, shapes
from bench.static_cache.gates import gates
from bench.static_cache.run import StaticCacheRequest
from flashinfer_patches.errors import Problem
from vllm_launch.terminal import exit_on_problems


@click.command("static-cache")
@click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>.")
@click.option("--resume", type=FOLDER, help="Finish the run in this folder.")
@click.option("--dry-run", is_flag=True, help="Print what would be measured; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_obj
def static_cache_command(write_report, run_dir, resume, dry_run, as_json):
    """Time attention over quantised rings of frames on this GPU, against BF16 and the earlier rolled cache; minutes.

    Finish an interrupted run with --resume. Exit code 3: a gate failed; 4: our kernel did not run.
    """
    if resume and run_dir:
        raise click.UsageError("--resume names the folder; give no --run-dir")
    if dry_run:
        for point in shapes.POINTS:
            cases = ", ".join(f"{backend} {name}" for backend, name in shapes.attention_cases(point))
            frames = f"; frames: {', '.join(shapes.FRAME_STORAGES)}" if point in shapes.FRAME_POINTS else ""
            click.echo(f"{point}: {cases}{frames}")
        return
    folder = (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    request = run_folder.read_request(resume, "static-cache", StaticCacheRequest) if resume else StaticCacheRequest()
    exit_on_problems(run.problems(folder))
    command = ["fp8-sinks", *sys.argv[1:]]
    result = run_in_folder(folder, request, lambda display: run.execute(folder, display, command), write_report)
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    errors = [row.error for row in result.rows if row.backend == "triton"]
    if errors and all(errors):
        raise Problem("software", f"our kernel did not run; first error: {errors[0]}", "the report has every error")
    if failed := [gate for gate in gates(result) if gate.verdict == "FAILED"]:
        first = failed[0]
        message = f"{len(failed)} gates failed; first: {first.name}: {first.value}, expected {first.bound}"
        raise Problem("gate", message, "the report has every measurement")
