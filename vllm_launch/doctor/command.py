"""`fp8-sinks doctor`: can this machine serve, with what, and what to repair first."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashinfer_patches.errors import ENVIRONMENT
from vllm_launch.cli import DEFAULT_PORT
from vllm_launch.doctor import checks, flashinfer
from vllm_launch.doctor.backends import choice
from vllm_launch.doctor.facts import Facts, Failure, gather
from vllm_launch.doctor.finding import Finding, Status, worst

VERDICTS = {Status.OK: "ready", Status.WARNING: "ready, with warnings", Status.ERROR: "cannot run yet"}
COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.ERROR: "red"}
PIPE_WIDTH = 110


def findings(facts: Facts) -> list[Finding]:
    """Judge the facts: one finding for each check, hardware first. Reads nothing of this machine itself."""
    build, machine, packages = facts.build, facts.machine, facts.packages
    chosen = choice(machine.family, build[1]) if machine and not isinstance(build, Failure) else None
    backend = chosen.backend if chosen else None
    results = [checks.gpu(facts.gpu, facts.no_gpu, facts.capability, build)]
    if facts.device == "gpu":
        if facts.gpu and facts.driver_cuda:
            cuda = checks.torch_cuda(packages)
            results.append(checks.driver(facts.gpu.driver, facts.driver_cuda, None if cuda == "cpu" else cuda))
        prebuilt = "flashinfer-jit-cache" in packages
        results.append(checks.toolkit(facts.nvcc, facts.toolkit, facts.ninja, facts.capability, backend, prebuilt))
    results += [
        checks.vllm(build),
        *checks.software(facts.software),
        checks.torch(packages, facts.pins, build),
        flashinfer.installation(packages, facts.pins, backend, facts.patch),
        flashinfer.prebuilt_kernels(packages, facts.patch),
    ]
    if machine:
        results += checks.backends(machine, build, packages)
        results.append(checks.decoder(machine, facts.certificate))
        for need in facts.needs:
            results.append(checks.model(need))
            results.append(checks.memory(need, machine, facts.page_cache_bytes, facts.memory_users))
    if facts.device == "gpu" and facts.certificate:
        results.append(checks.certificate(facts.gpu, facts.certificate))
    results += [checks.disk(folder) for folder in facts.folders]
    return [*results, checks.port(facts.port, facts.port_user)]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(context, as_json):
    """Report what would keep `bench serving baseline fp8` from running on this machine, each with its remedy.

    Starts nothing and leaves nothing; needs neither vLLM nor torch.

    Exit codes: 0 ready, with or without warnings; 4 cannot run yet.
    """
    facts = gather(
        port=DEFAULT_PORT,
        cache_root=Path.home() / ".cache" / "fp8-sinks",
        run_root=Path("runs"),
    )
    results = findings(facts)
    status = worst(results)
    if as_json:
        document = {"status": status, "findings": [finding.model_dump(mode="json") for finding in results]}
        click.echo(json.dumps(document, indent=2))
    else:
        _print(results, status)
    context.exit(ENVIRONMENT if status == Status.ERROR else 0)


def _print(results: list[Finding], status: Status) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in results:
        text = Text(finding.message)
        if finding.remedy:
            text.append(f"\nremedy: {finding.remedy}", style="bold")
        table.add_row(Text(finding.status, style=COLOURS[finding.status]), finding.topic, text)
    console.print(table)
    console.print(Text(f"\n{VERDICTS[status]}", style=COLOURS[status]))
