"""`fp8-sinks bench serving`."""

import click

from bench.accuracy.gate_words import check_gates
from bench.servers import external
from bench.servers import run as runs
from bench.servers.command import commands, folder_and_request, run_options, run_request
from bench.serving import external_run, goodput, run
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


def _base_url(_context, _parameter, text: str | None) -> str | None:
    try:
        return None if text is None else external.base_url(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _parse_slo(_context, _parameter, text: str | None) -> goodput.Slo:
    try:
        return {} if text is None else goodput.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command("serving")
@run_options
@_list_option("prompt", "Tokens of each prompt")
@_list_option("output", "Tokens of each output", minimum=2)
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
@click.option("--url", callback=_base_url, help="Measure an external server; start none.")
@click.option("--reference-url", callback=_base_url, help="External server whose answers are the reference.")
@click.pass_obj
def serving_command(write_report, dry_run, **options):
    """Serve each PROFILE cold and warm, gate its answers, measure it with llama-benchy, write result and report.

    The caches of the run are wiped before each profile's cold start. Servers listen on loopback only. Exits with 3 if
    a gate fails.

    With --url no server is started: the external server there is measured as it is. PROFILE then selects the bounds of
    the gates, nothing else.
    """
    url, reference_url = options["url"], options["reference_url"]
    if reference_url and (url is None or url == reference_url):
        raise click.UsageError("--reference-url names a second server, beside that of --url")
    fields = {name: options.pop(name) for name in Grid.model_fields if name in options}
    grid = {name: value for name, value in fields.items() if value is not None}
    folder, request = folder_and_request("serving", grid=grid, **options)
    if request.url:
        resolved, preview, module = external.resolve(folder, request), external_run.requests, external_run
    else:
        resolved, preview, module = runs.resolve(folder, request), commands, run
    result = run_request(resolved, preview, module.problems, module.execute, write_report, dry_run=dry_run)
    if result:
        check_gates(result.rows)
