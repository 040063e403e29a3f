"""`fp8-sinks bench accuracy`."""

import click

from bench.accuracy import run, tables
from bench.accuracy.gate_words import check_gates
from bench.servers.command import run_options, run_profiles
from bench.servers.run import problems
from vllm_launch.terminal import console


@click.command("accuracy")
@run_options
@click.pass_obj
def accuracy_command(write_report, **options):
    """Serve each PROFILE, compare its answers and KV capacity with the reference profile's, write result and report.

    No speed. Log-probabilities of held-out text through decode and through prefill, greedy text, and the sinks against
    transformers. Exits with 3 if a gate fails.
    """
    if result := run_profiles("accuracy", problems, run.execute, write_report, **options):
        base = tables.base_of(result.rows)
        for row in result.rows:
            capacity = tables.capacity(row, base, unit=" tokens")
            console.print(f"{row.profile}: KV cache {capacity}", highlight=False, markup=False, soft_wrap=True)
        check_gates(result.rows)
