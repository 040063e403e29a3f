"""`fp8-sinks bench`: serving, report, keep."""

import shlex
import shutil
import sys
from datetime import datetime
from pathlib import Path

import click
from pydantic import ValidationError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import result as results
from bench import serving
from vllm_launch import plan as plans
from vllm_launch import profile
from vllm_launch.cli import signals_as_exit, talk
from vllm_launch.errors import Problem

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def bench() -> None:
    """Measure servers, and make reports from the result files."""


@bench.command("serving")
@click.argument("words", nargs=-1, metavar="PROFILE... [-- VLLM_ARGUMENTS...]")
@click.option("--model", help="Model folder, or owner/name in the local Hugging Face cache.")
@click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>.")
@click.option("--resume", type=FOLDER, help="A run folder: do what it lacks, with its own profiles and model.")
@click.option("--dry-run", is_flag=True, help="Print each profile's server command, start nothing.")
def serving_command(words, model, run_dir, resume, dry_run):
    """Serve each PROFILE cold and warm, measure it with llama-benchy, gate its answers, write result and report.

    The caches of the run are wiped before each profile's cold start. Servers listen on loopback only.
    """
    request = _request(words, model, run_dir, resume)
    folder = (resume or run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    if dry_run:
        for name in request.profiles:
            plan = plans.make(
                profile.load(name), port=0, cache_root=folder / "cache", model_path=model, overrides=request.overrides
            )
            click.echo(plans.as_shell(plan))
        return
    _create(folder)
    results.write(request, folder / "request.json")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with signals_as_exit(), Progress(*columns, console=talk, transient=True) as progress:
        task = progress.add_task("preparing")
        run = serving.Run(
            folder=folder,
            request=request,
            say=lambda line: progress.update(task, description=line),
            done=progress.console.print,
        )
        try:
            result = serving.execute(run, command=["fp8-sinks", *sys.argv[1:]])
        finally:
            if (folder / "result.json").exists():
                path = _reports().write([folder / "result.json"], folder, name="report.md")
                talk.print(f"result: {folder / 'result.json'}\nreport: {path}", soft_wrap=True)
            talk.print(f"resume: fp8-sinks bench serving --resume {shlex.quote(str(folder))}", soft_wrap=True)
    _gate(result)


def _request(words: tuple[str, ...], model, run_dir, resume) -> serving.Request:
    if resume:
        if words or model or run_dir:
            raise click.UsageError("--resume takes profiles, model and folder from the run; give nothing else")
        path = resume / "request.json"
        try:
            return serving.Request.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            what = f"{resume} is no run folder: cannot read {path.name}"
            raise Problem("file", what, "name a folder in runs/") from error
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if first_flag == 0:
        raise click.UsageError(f"name at least one profile: {', '.join(profile.names())}")
    profiles, overrides = list(words[:first_flag]), list(words[first_flag:])
    return serving.Request(profiles=profiles, model=model, overrides=overrides)


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(
            "disk", f"cannot create {folder}: {error.strerror}", "choose another --run-dir, or mend its rights"
        ) from error


def _gate(result: results.ServingResult) -> None:
    failed = [(row.profile, match) for row in result.rows for match in row.greedy if not match.passed]
    if failed:
        name, match = failed[0]
        raise Problem(
            "gate",
            f"{name}: greedy match {match.matched} of {match.tokens} ({match.distinct} distinct) after"
            f" {match.prompt!r}; {len(failed)} prompt(s) failed",
            "the report shows both answers; do not serve this profile before the reason is known",
        )


@bench.command("report")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, default=".", show_default=True, help="Folder for the report.")
@click.option("--name", default="BENCHMARK_RESULTS.md", show_default=True)
@click.option("--plots", default="plots", show_default=True, help="Folder for the plots, inside --out.")
@click.option("--glance", type=click.Path(path_type=Path, dir_okay=False), help="Also renew the results in this file.")
def report_command(paths, out, name, plots, glance):
    """Write Markdown and plots from result files (or folders of them) alone."""
    found = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not found:
        what = f"no result files in {', '.join(map(str, paths))}"
        raise Problem("file", what, "run a bench, then: fp8-sinks bench keep RUN")
    click.echo(_reports().write(found, out, name, plots))
    if glance:
        click.echo(_reports().write_glance(found, glance))


def _reports():
    from bench import report  # brings matplotlib, which no other verb needs

    return report


@bench.command()
@click.argument("run", type=FOLDER)
@click.option("--results", "folder", type=FOLDER, default="results", show_default=True)
def keep(run, folder):
    """Copy a run's result into results/, named by its id, where `make report` finds it."""
    result = results.read(run / "result.json")
    _create(folder)
    target = folder / f"{result.kind}-{result.id}.json"
    temporary = target.with_suffix(".partial")
    shutil.copyfile(run / "result.json", temporary)
    temporary.replace(target)
    click.echo(target)
