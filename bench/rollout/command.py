"""`fp8-sinks bench rollout`."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from bench.record import run_folder
from bench.record.command import FOLDER, run_in_folder
from bench.rollout import run, sweep
from bench.rollout.request import SCRIPT, RolloutRequest, RolloutRun, check, resolve, settings_on
from bench.rollout.result import RolloutResult
from flashinfer_patches.errors import Problem

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("rollout")
@click.option("--sweep", "sweep_name", help="Name of a sweep, or path of a YAML file. [default: default]")
@click.option("--script", type=FILE, help="The world model's, run once a cell. [default: examples/world_model/cell.py]")
@click.option("--checkpoint", type=FILE, help="The model's file. [default: the script's own]")
@click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>.")
@click.option("--resume", type=FOLDER, help="Finish the run in this folder; takes what it measures from it.")
@click.option("--dry-run", is_flag=True, help="Print the cells and their settings; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
@click.pass_obj
def rollout_command(write_report, run_dir, resume, dry_run, as_json, **options):
    """Roll a world model out with each cell's settings, and judge quality, speed and memory against BF16.

    Needs scikit-image and, for MX, torchao: locks/world-model.txt.
    """
    if resume and (run_dir or any(options.values())):
        raise click.UsageError("--resume takes what it measures, and the folder, from the run")
    folder = (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    request = run_folder.read_request(resume, "rollout", RolloutRequest) if resume else _request(**options)
    resolved = resolve(folder, request)
    if dry_run:
        click.echo("\n".join(_plan(resolved)))
        return
    check(resolved)
    command = ["fp8-sinks", *sys.argv[1:]]
    result = run_in_folder(
        folder, request, lambda display: run.execute(replace(resolved, **display._asdict()), command), write_report
    )
    if as_json:
        click.echo(result.model_dump_json(indent=1))
    _check_measured(result, request.sweep.reference)
    _check_gates(result)


def _request(sweep_name: str | None, script: Path | None, checkpoint: Path | None) -> RolloutRequest:
    return RolloutRequest(
        kind="rollout",
        sweep=sweep.load(sweep_name or "default"),
        script=str((script or SCRIPT).resolve()),
        checkpoint=str(checkpoint.resolve()) if checkpoint else None,
    )


def _plan(resolved: RolloutRun) -> Iterator[str]:
    """A line for each cell and gate."""
    for name, cell in resolved.sweep.cells.items():
        settings = settings_on(resolved.family, resolved.sweep.settings(name))
        words = [f"{key}={value}" for key, value in settings.items()]
        yield " ".join([f"{name:24}", *words, *(f"if {gate} passes" for gate in cell.requires)])
    for name, gate in resolved.sweep.gates.items():
        yield f"gate {name:19} {gate.cell} within {gate.drop_db:g} dB of {gate.base}"


def _check_measured(result: RolloutResult, reference: str) -> None:
    """Raise Problem("server") where no cell but the reference was measured."""
    errors = [row.error for row in result.rows if row.cell != reference]
    if errors and all(errors):
        raise Problem("server", f"no cell was measured; first error: {errors[0]}", "read the logs in the run folder")


def _check_gates(result: RolloutResult) -> None:
    """Raise Problem("gate") where one failed."""
    if failed := [gate.gate for gate in result.gates if gate.verdict == "failed"]:
        raise Problem("gate", f"failed gates: {', '.join(failed)}", "the report lists the steps they fell back to")
