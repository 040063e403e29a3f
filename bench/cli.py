"""`fp8-sinks bench`: serving, accuracy, kernels, report, keep, compare."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from bench import kinds as results
from bench.accuracy import run as gates
from bench.accuracy.run import failed_gates
from bench.kernels.command import kernels_command
from bench.record import run_folder
from bench.record.command import execute_run
from bench.record.files import write_text
from bench.record.run_folder import Request
from bench.servers import run as runs
from bench.servers.run import Run
from bench.serving import run as serving
from flashinfer_patches.errors import Problem
from vllm_launch import arguments, profile, provenance
from vllm_launch import plan as plans
from vllm_launch.terminal import refuse

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure servers and kernels, and make reports from the result files."""
    context.obj = write_report  # no kind imports the report, which imports every kind


def write_report(folder: Path) -> Path:
    """Write the report of a run folder into it, and return its path."""
    return _reports().write([folder / "result.json"], folder, name="report.md")


bench.add_command(kernels_command)


def run_options(command):
    """The arguments and options that every measuring command has."""
    for option in reversed(
        (
            click.argument("words", nargs=-1, metavar="PROFILE... [-- VLLM_ARGUMENTS...]"),
            click.option("--model", help="Model folder, or owner/name in the local Hugging Face cache."),
            click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>."),
            click.option("--resume", type=FOLDER, help="A run folder: do what it lacks, with its profiles and model."),
            click.option("--dry-run", is_flag=True, help="Print each profile's server command, start nothing."),
        )
    ):
        command = option(command)
    return command


@bench.command("serving")
@run_options
def serving_command(words, model, run_dir, resume, dry_run):
    """Serve each PROFILE cold and warm, gate its answers, measure it with llama-benchy, write result and report.

    The caches of the run are wiped before each profile's cold start. Servers listen on loopback only.
    """
    _run(serving.execute, _request("serving", words, model, run_dir, resume), run_dir or resume, dry_run)


@bench.command("accuracy")
@run_options
def accuracy_command(words, model, run_dir, resume, dry_run):
    """Serve each PROFILE, compare its answers with the reference profile's, write result and report; no speed.

    Log-probabilities of held-out text through decode and through prefill, greedy text, and the sinks against
    transformers. Exits with 31 if a gate fails.
    """
    _run(gates.execute, _request("accuracy", words, model, run_dir, resume), run_dir or resume, dry_run)


def _run(execute: Callable, request: Request, folder: Path | None, dry_run: bool) -> None:
    folder = (folder or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve()
    run = Run(folder, request)
    if dry_run:
        for chosen in runs.profiles_of(request)[0]:
            click.echo(plans.as_shell(runs.plan_of(run, chosen)))
    refuse(runs.problems(run))
    if dry_run:
        return
    result = execute_run(
        folder,
        request,
        lambda status, report: execute(replace(run, say=status, done=report), command=["fp8-sinks", *sys.argv[1:]]),
        write_report,
    )
    _gate(result)


def _request(kind: str, words: tuple[str, ...], model, run_dir, resume) -> Request:
    if resume:
        if words or model or run_dir:
            raise click.UsageError("--resume takes profiles, model and folder from the run; give nothing else")
        request = run_folder.read_request(resume)
        if request.kind != kind:
            what = f"{resume} holds a run of `bench {request.kind}`"
            raise Problem("file", what, f"fp8-sinks bench {request.kind} --resume {shlex.quote(str(resume))}")
        return request
    first_flag = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if first_flag == 0:
        raise click.UsageError(f"name at least one profile: {', '.join(profile.names())}")
    profiles, overrides = list(words[:first_flag]), list(words[first_flag:])
    arguments.parse(overrides)  # what is refused may be a secret, and a request is written
    if provenance.masked(overrides) != overrides:
        what = "the arguments for vLLM hold a key, token or password: a run would keep it in its files"
        raise Problem("profile", what, "give it to the server through the environment")
    return Request(kind=kind, profiles=profiles, model=model, overrides=overrides)


def _gate(result: results.ServingResult | results.AccuracyResult) -> None:
    """Raise Problem("gate") if any profile failed any gate; the first one is named."""
    failed = [f"{row.profile}: {words}" for row in result.rows for words in failed_gates(row)]
    if failed:
        raise Problem(
            "gate",
            f"{failed[0]} ({len(failed)} gate(s) failed)",
            "the report shows each failed gate; do not serve this profile before the reason is known",
        )


@bench.command("report")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, default=".", show_default=True, help="Folder for the report.")
@click.option("--name", default="BENCHMARK_RESULTS.md", show_default=True)
@click.option("--plots", default="plots", show_default=True, help="Folder for the plots, inside --out.")
@click.option("--glance", type=click.Path(path_type=Path, dir_okay=False), help="Also renew the results in this file.")
def report_command(paths, out, name, plots, glance):
    """Write Markdown and plots from result files, run folders or folders of result files alone."""
    files = [results.file_of(path) for path in paths]
    found = [file for path in files for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not found:
        what = f"no result files in {', '.join(map(str, paths))}"
        raise Problem("file", what, "run a bench, then: fp8-sinks bench keep RUN")
    click.echo(_reports().write(found, out, name, plots))
    if glance:
        click.echo(_reports().write_glance(found, glance))


def _reports():
    from bench.report import document  # brings matplotlib, which no other verb needs

    return document


@bench.command()
@click.argument("run", type=FOLDER)
@click.option("--results", "folder", type=FOLDER, default="results", show_default=True)
def keep(run, folder):
    """Copy a run's result into results/, named by its id, where `make report` finds it."""
    result = results.read(run)
    remedy = "choose another --results, or mend its rights"
    with run_folder.writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{result.kind}-{result.id}.json"
    if target.exists() and _identity(results.read(target)) != _identity(result):
        what = f"{target} is of another run of this id"
        raise Problem("file", what, "name another folder with --results, or rename that file first")
    text = results.file_of(run).read_text(encoding="utf-8")
    with run_folder.writing(folder, remedy):
        write_text(text, target)
    click.echo(target)


def _identity(result) -> tuple:
    """What is the same in two files of one run."""
    return result.id, result.provenance.created, result.provenance.git_commit


@bench.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--force", is_flag=True, help="Compare what differs in more than the KV cache, marked as such.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare_command(a, b, force, as_json):
    """Compare profiles of result files: ratios B over A, with their noise and the accuracy records.

    A and B are result files or run folders, whose profiles of the same name are paired, or FILE:PROFILE.
    """
    from bench.serving import compare  # brings matplotlib, which few verbs need

    click.echo(compare.compare(a, b, force=force, as_json=as_json))
