"""`fp8-sinks doctor`: can this machine serve, with what, and what to mend first."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashinfer_patches.errors import ENVIRONMENT
from vllm_launch.cli import DEFAULT_PORT
from vllm_launch.doctor import checks
from vllm_launch.doctor import flashinfer as doctor_flashinfer
from vllm_launch.doctor.backends import choice
from vllm_launch.doctor.checks import Finding
from vllm_launch.doctor.facts import Facts, gather

SEVERITY = ("ok", "warning", "error")
VERDICTS = {"ok": "ready", "warning": "ready, with warnings", "error": "cannot run yet"}
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
PIPE_WIDTH = 110


def findings(facts: Facts) -> list[Finding]:
    """Judge the facts: one finding for each thing looked at, hardware first. Looks at nothing itself."""
    build, machine, packages = facts.build, facts.machine, facts.packages
    chosen = choice(machine.family, build[1]) if machine and isinstance(build, tuple) else None
    backend = chosen.backend if chosen else None
    found = [checks.gpu(facts.gpu, facts.no_gpu, facts.capability, build)]
    if facts.device == "gpu":
        if facts.gpu and facts.driver_cuda:
            cuda = checks.torch_cuda(packages)
            found.append(checks.driver(facts.gpu.driver, facts.driver_cuda, None if cuda == "cpu" else cuda))
        prebuilt = "flashinfer-jit-cache" in packages
        found.append(
            checks.toolkit(facts.nvcc, facts.toolkit, facts.ninja, facts.capability, backend, prebuilt),
        )
    found += [
        checks.vllm(build),
        *checks.software(facts.software),
        checks.torch(packages, facts.pins, build),
        doctor_flashinfer.flashinfer(packages, facts.pins, backend, facts.patch),
        doctor_flashinfer.prebuilt_kernels(packages, facts.patch),
    ]
    if machine:
        found += checks.backends(machine, build, packages)
        users = facts.memory_users
        for need in facts.needs:
            found += [checks.model(need), checks.memory(need, machine, facts.page_cache_bytes, users)]
    found += [checks.disk(place) for place in facts.places]
    return [*found, checks.port(facts.port, facts.port_user)]


def worst(found: list[Finding]) -> str:
    """The status of the whole: "ok", "warning" or "error"."""
    return max((finding.status for finding in found), key=SEVERITY.index)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(context, as_json):
    """Look at this machine and say what would keep `bench serving baseline fp8` from running, each with its remedy.

    Starts nothing and leaves nothing; needs neither vLLM nor torch.

    Exit codes: 0 ready, with or without warnings; 4 cannot run yet.
    """
    facts = gather(
        port=DEFAULT_PORT,
        cache_root=Path.home() / ".cache" / "fp8-sinks",
        run_root=Path("runs"),
    )
    found = findings(facts)
    status = worst(found)
    if as_json:
        click.echo(json.dumps({"status": status, "findings": [f.model_dump() for f in found]}, indent=2))
    else:
        _print(found, status)
    context.exit(ENVIRONMENT if status == "error" else 0)


def _print(found: list[Finding], status: str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in found:
        what = Text(finding.what)
        if finding.remedy:
            what.append(f"\nremedy: {finding.remedy}", style="bold")
        table.add_row(Text(finding.status, style=COLOURS[finding.status]), finding.topic, what)
    console.print(table)
    console.print(Text(f"\n{VERDICTS[status]}", style=COLOURS[status]))
