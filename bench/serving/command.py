"""`fp8-sinks bench serving`."""

import click

from bench.accuracy.gate_words import check_gates
from bench.servers.command import run_options, run_profiles
from bench.serving import run


@click.command("serving")
@run_options
@click.pass_obj
def serving_command(write_report, **options):
    """Serve each PROFILE cold and warm, gate its answers, measure it with llama-benchy, write result and report.

    The caches of the run are wiped before each profile's cold start. Servers listen on loopback only. Exits with 3 if
    a gate fails.
    """
    if result := run_profiles("serving", run.problems, run.execute, write_report, **options):
        check_gates(result.rows)
