"""`fp8-sinks certify`."""

from datetime import datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.certify import run
from flashinfer_patches.errors import Problem
from vllm_launch import certificate
from vllm_launch.certificate import COMMAND, Certificate, Verdict
from vllm_launch.terminal import exit_on_problems, progress, signals_as_exit

COLOURS: dict[Verdict, str] = {"passed": "green", "failed": "red", "not run": "yellow"}
PIPE_WIDTH = 110


@click.command("certify")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON.")
@click.option("--dry-run", is_flag=True, help="Print what would run and where the certificate would lie.")
@click.option("--seconds", type=click.IntRange(min=1), default=120, show_default=True, help="Time for all checks.")
def certify(as_json, dry_run, seconds):
    """Certify our decode kernels on this GPU, so that profile `fp8` uses the fastest right decoder.

    Checks the kernels against float64, times them against the memory's limit and FlashInfer, and compares the tiny
    model's answers through vLLM with BF16's. Writes the verdict into ~/.local/state/fp8-sinks, the servers' logs into
    runs/certify-<time>.

    Exit codes: 0 certified; 3 a check failed; 4 no GPU, or a check could not run.
    """
    folder = (Path("runs") / f"certify-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    exit_on_problems([problem for problem in [run.problem()] if problem])
    if dry_run:
        for line in run.preview(folder):
            click.echo(line)
        return
    with signals_as_exit(), progress() as display:
        result = run.execute(run.Request(folder, seconds), display)
    click.echo(result.model_dump_json(indent=2)) if as_json else _print(result)
    _raise_unless_passed(result)


def _print(result: Certificate) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for check in result.checks:
        text = Text("\n".join([check.detail, *check.problems]))
        table.add_row(Text(check.verdict, style=COLOURS[check.verdict]), check.name, text)
    console.print(table)
    console.print(Text(f"\n{result.key.gpu}: decoder {result.decoder}, in {result.seconds:.0f} s"))
    console.print(Text(str(certificate.path_of(result.key))), soft_wrap=True)


def _raise_unless_passed(result: Certificate) -> None:
    """Raise Problem("gate") for a failed check, Problem("software") for one that did not run."""
    named = [check for check in result.checks if check.verdict == result.verdict]
    if result.verdict == "failed":
        message = f"{named[0].name}: {named[0].detail}; the certificate names no decoder"
        raise Problem("gate", message, "report it with the output of this command and `fp8-sinks doctor --json`")
    if result.verdict == "not run":
        message = f"{named[0].name} did not run: {named[0].detail}; the certificate is not valid for serving"
        raise Problem("software", message, f"see to that, then run again: {COMMAND}")
