"""What the commands share that run profiles on servers: options, request, and the run with its progress."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click

from bench.record import run_folder
from bench.record.command import run_in_folder
from bench.record.run_folder import Request
from bench.servers import run as runs
from bench.servers.run import Run
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch import arguments, profile, redaction
from vllm_launch import plan as plans
from vllm_launch.terminal import exit_on_problems

FOLDER = click.Path(path_type=Path, file_okay=False)

R = TypeVar("R", bound=Strict)


def run_options(command):
    """Add the arguments and options of a command that runs profiles."""
    for option in reversed(
        (
            click.argument("words", nargs=-1, metavar="PROFILE... [-- VLLM_ARGUMENTS...]"),
            click.option("--model", help="Model folder, or owner/name in the local Hugging Face cache."),
            click.option("--suite", help="Grid, texts and gates: a name or a .yaml file; default: the model's own."),
            click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>."),
            click.option("--resume", type=FOLDER, help="Finish the run in this folder; takes all settings from it."),
            click.option("--dry-run", is_flag=True, help="Print each profile's server command, start nothing."),
        )
    ):
        command = option(command)
    return command


def run_profiles(
    kind: str,
    problems: Callable[[Run], list[Problem]],
    execute: Callable[..., R],
    write_report: Callable[[Path], Path],
    *,
    dry_run: bool,
    **options,
) -> R | None:
    """Run the profiles that the options of run_options name, and write the report; None for a dry run.

    problems, execute: the kind's own. write_report: makes the report of a run folder and returns its path. Other
    options: as in folder_and_request.
    """
    folder, request = folder_and_request(kind, **options)
    return run_request(runs.resolve(folder, request), commands, problems, execute, write_report, dry_run=dry_run)


def commands(run: Run) -> list[str]:
    """The shell command of each profile's server."""
    return [plans.as_shell(entry.plan) for entry in run.entries]


def folder_and_request(
    kind: str,
    *,
    words: tuple[str, ...],
    model: str | None,
    suite: str | None,
    run_dir: Path | None,
    resume: Path | None,
    **settings,
) -> tuple[Path, Request]:
    """The folder of a run, new or resumed, and its request. settings: other fields of Request, empty by default."""
    if resume:
        if words or model or suite or run_dir or any(settings.values()):
            raise click.UsageError("--resume takes all settings and the folder from the run; give nothing else")
        request = run_folder.read_request(resume, kind)
    else:
        request = _request(kind, words, model, suite, settings)
    return (run_dir or resume or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}").resolve(), request


def run_request(
    run: Run,
    preview: Callable[[Run], list[str]],
    problems: Callable[[Run], list[Problem]],
    execute: Callable[..., R],
    write_report: Callable[[Path], Path],
    *,
    dry_run: bool,
) -> R | None:
    """Execute a resolved run in its folder and write its report; for a dry run print the lines of `preview` alone."""
    if dry_run:
        for line in preview(run):
            click.echo(line)
    exit_on_problems(problems(run))
    if dry_run:
        return None
    command = ["fp8-sinks", *sys.argv[1:]]
    return run_in_folder(
        run.folder,
        run.request,
        lambda display: execute(replace(run, **display._asdict()), command=command),
        write_report,
    )


def _request(kind: str, words: tuple[str, ...], model: str | None, suite: str | None, settings: dict) -> Request:
    first_flag = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    profiles, overrides = list(words[:first_flag]), list(words[first_flag:])
    if settings.get("url") and (len(profiles) > 1 or overrides):
        message = "--url measures a server as it runs: give no arguments for vLLM, and at most one profile, whose"
        raise click.UsageError(f"{message} bounds judge its answers")
    if not (profiles or settings.get("url")):
        raise click.UsageError(f"name at least one profile: {', '.join(profile.names())}")
    arguments.parse(overrides)  # what is refused may be a secret, and a request is written
    if redaction.masked(overrides) != overrides:
        message = "the arguments for vLLM hold a key, token or password: a run would save it in its files"
        raise Problem("profile", message, "give it to the server through the environment")
    return Request(kind=kind, profiles=profiles, model=model, suite=suite, overrides=overrides, **settings)
