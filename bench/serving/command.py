"""`fp8-sinks bench serving`."""

import click

from bench.accuracy.gate_words import check_gates
from bench.servers.command import run_options, run_profiles
from bench.serving import goodput, run
from bench.suite import Grid


def _counts(text: str, minimum: int) -> list[int]:
    """Parse a comma-separated list of different counts, each at least `minimum`; raises click.BadParameter."""
    words = [word.strip() for word in text.split(",")]
    counts = [int(word) for word in words if word.isdecimal()]
    if len(counts) < len(words) or min(counts) < minimum or len({*counts}) < len(counts):
        raise click.BadParameter(f"got {text!r}, expected different counts of at least {minimum}, such as 128,256")
    return counts


def _list_option(name: str, description: str, minimum: int = 1):
    def parse(_context, _parameter, text: str | None) -> list[int] | None:
        return None if text is None else _counts(text, minimum)

    return click.option(f"--{name}", callback=parse, metavar="N,...", help=f"{description}; default: the suite's.")


def _parse_slo(_context, _parameter, text: str | None) -> goodput.Slo:
    try:
        return {} if text is None else goodput.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("serving")
@run_options
@_list_option("prompt", "Tokens of each prompt")
@_list_option("output", "Tokens of each output")
@_list_option("depth", "Tokens of context before the prompt", minimum=0)
@_list_option("concurrency", "Requests at once")
@click.option("--runs", type=click.IntRange(min=1), metavar="N", help="Repeats of each point; default: the suite's.")
@click.option(
    "--slo",
    callback=_parse_slo,
    metavar="LIMITS",
    help="Limits of goodput, such as ttft=500ms,itl=50ms,e2e=4s: first token, mean time per token, whole request.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="A first look: one cold start per profile, greedy answers, and one run of the grid's first point.",
)
@click.pass_obj
def serving_command(write_report, **options):
    """Serve each PROFILE cold and warm, gate its answers, measure it with llama-benchy, write result and report.

    The caches of the run are wiped before each profile's cold start. Servers listen on loopback only. Exits with 3 if
    a gate fails.
    """
    fields = {name: options.pop(name) for name in Grid.model_fields if name in options}
    grid = {name: value for name, value in fields.items() if value is not None}
    if result := run_profiles("serving", run.problems, run.execute, write_report, grid=grid, **options):
        check_gates(result.rows)
