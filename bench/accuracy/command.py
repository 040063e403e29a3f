"""`fp8-sinks bench accuracy`."""

import click

from bench.accuracy import run
from bench.accuracy.gate_words import check_gates
from bench.servers.command import run_options, run_profiles
from bench.servers.run import problems


@click.command("accuracy")
@run_options
@click.pass_obj
def accuracy_command(write_report, **options):
    """Serve each PROFILE, compare its answers with the reference profile's, write result and report; no speed.

    Log-probabilities of held-out text through decode and through prefill, greedy text, and the sinks against
    transformers. Exits with 3 if a gate fails.
    """
    if result := run_profiles("accuracy", problems, run.execute, write_report, **options):
        check_gates(result.rows)
