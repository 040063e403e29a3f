"""`fp8-sinks bench`: the group of the kinds' commands, and of those on result files."""

import click

from bench.commands import compare_command, export_command, keep_command, report_command, write_report
from bench.kinds import KINDS


@click.group()
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure servers and kernels, and make reports from the result files."""
    context.obj = write_report  # so that no kind imports the report, which imports every kind


for command in (
    *(kind.command for kind in KINDS.values()),
    report_command,
    keep_command,
    compare_command,
    export_command,
):
    bench.add_command(command)
