"""`fp8-sinks serve`: one server in the foreground."""

import json
import sys
from datetime import datetime
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from vllm_launch import plan as plans
from vllm_launch import preflight, profile, server
from vllm_launch.resolved import Resolved
from vllm_launch.terminal import console, exit_on_problems, signals_as_exit

DEFAULT_PORT = 8000
CPU_ATTENTION = {
    "native": "native: vLLM's FP8 kernel",
    "widened": "widened: the FP8 cache is widened for a kernel without FP8; slower decode than with a BF16 cache",
}


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("profile_name", metavar="PROFILE")
@click.argument("vllm_arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--model", help="Model folder, or owner/name in the local Hugging Face cache.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True)
@click.option(
    "--expose",
    is_flag=True,
    help="Allow a --host other than loopback; needs VLLM_API_KEY, which every route but /health and /ping requires.",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Logs; default runs/serve-<time>-<port>.")
@click.option(
    "--dry-run", is_flag=True, help="Print the exact command and environment, and every problem; start nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the settings that vLLM chose as JSON on stdout.")
def serve(profile_name, vllm_arguments, model, host, port, expose, run_dir, dry_run, as_json):
    """Serve a model with PROFILE (baseline, fp8, fp8-skip-sliding, fp8-stock, or a .yaml file) until Ctrl-C.

    Anything after `--` goes to vLLM and wins over the profile: fp8-sinks serve fp8 -- --max-model-len 8192
    """
    run_dir = run_dir or Path("runs") / f"serve-{datetime.now():%Y%m%d-%H%M%S}-{port}"  # no two share a port
    plan = plans.make(
        profile.load(profile_name),
        port=port,
        host=host,
        model_path=model,
        cache_root=Path.home() / ".cache" / "fp8-sinks",
        overrides=list(vllm_arguments),
    )
    if dry_run:
        click.echo(plan.model_dump_json(indent=2) if as_json else plans.as_shell(plan))
    exit_on_problems(preflight.problems(plan, run_dir, expose=expose))
    if dry_run:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (
        signals_as_exit(),
        console.status(f"starting {profile_name}") as status,
        server.running(plan, run_dir, show_status=lambda line: status.update(escape(line))) as running,
    ):
        status.stop()
        console.print(resolved_table(running))
        if as_json:
            click.echo(json.dumps(summary(running)))
            sys.stdout.flush()
        running.wait()


def summary(running: server.Server) -> dict:
    """A ready server, as data for scripts."""
    plan = running.plan
    return {
        "url": plan.url,
        "model": plan.model.name,
        "profile": plan.profile,
        "requested": {
            "kv_cache_dtype": plan.kv_cache_dtype,
            "attention_backends": plan.expected_backends,
            "decoder": plan.decoder,
        },
        "resolved": running.resolved.model_dump(),
        "start_s": round(running.start_s, 2),
        "log": str(running.log),
        "supervisor_pid": running.supervisor.pid,
    }


def resolved_table(running: server.Server) -> Table:
    """The settings that were requested and that vLLM chose."""
    plan, resolved = running.plan, running.resolved
    table = Table(title=f"{plan.model.name} on {plan.url}", title_justify="left", show_header=False, box=None)
    capacity = f"{resolved.kv_capacity_tokens:,} tokens"
    rows = {
        "profile": plan.profile,
        "vLLM": f"{plan.vllm_version} on {plan.machine.name} ({plan.machine.family})",
        "attention backend": ", ".join(resolved.attention_backends),
        **decoder_rows(plan, resolved),
        "KV cache": f"{resolved.kv_cache_dtype} (requested: {plan.kv_cache_dtype}), {capacity}",
        **({"KV format": resolved.kv_format} if resolved.kv_format else {}),
        **({"KV scales": f"{plan.kv_scales} (sha256 {resolved.kv_scales})"} if resolved.kv_scales else {}),
        "CUDA graphs": resolved.cuda_graphs,
        **({"CPU attention": CPU_ATTENTION[resolved.cpu_attention]} if resolved.cpu_attention else {}),
        "ready after": f"{running.start_s:.1f} s",
        "log": str(running.log),
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    return table


def decoder_rows(plan: plans.Plan, resolved: Resolved) -> dict[str, str]:
    """Rows of `resolved_table` on the decoder: none on a CPU, which has no choice."""
    if plan.device == "cpu":
        return {}
    rows = {"decoder": f"{resolved.decoder}: {plan.decoder_reason}"}
    if resolved.decoder != "stock":
        rows["prefill, cache writer"] = f"{resolved.prefill}, {resolved.cache_writer}"
    return rows
