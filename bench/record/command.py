"""Execute a run from a command: folder locked, progress shown, result and report written."""

import shlex
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TypeVar

import click

from bench.record import run_folder
from flashinfer_patches.strict import Strict
from vllm_launch.terminal import Display, console, progress, signals_as_exit

R = TypeVar("R", bound=Strict)
FOLDER = click.Path(path_type=Path, file_okay=False)


def run_options(parts: str) -> Callable[[Callable], Callable]:
    """Add the options of a bench whose run can be resumed, and joined out of `parts`, as the help calls them."""
    join_help = f"Join the results of {parts}, files or run folders, in --run-dir; measures nothing. Repeat."
    options = [
        click.option("--run-dir", type=FOLDER, help="Where everything is written; default runs/<time>."),
        click.option("--resume", type=FOLDER, help="Finish the run in this folder; takes what it measures from it."),
        click.option("--join", "joined", multiple=True, type=click.Path(path_type=Path), help=join_help),
        click.option("--dry-run", is_flag=True, help="Print what would be measured and about how long; start nothing."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    ]
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


def run_in_folder(
    folder: Path, request: Strict, execute: Callable[[Display], R], write_report: Callable[[Path], Path]
) -> R:
    """Execute a run in its own folder, then write its report and print where both are.

    execute: takes terminal.progress()'s display, writes folder/result.json, which has a report even if it raises
    after that, and returns the result. write_report: writes the report of a run folder and returns its path. Raises
    what run_folder.opened() does. Prints how to resume a run that did not finish.
    """
    result, path = None, folder / "result.json"
    earlier = _written_at(path)
    with signals_as_exit(), run_folder.opened(folder, request), progress() as display:
        try:
            result = execute(display)
        finally:
            if _written_at(path) != earlier:  # else it is that of an earlier execution
                _print(f"result: {path}\nreport: {write_report(folder)}")
            if result is None:
                _print(f"resume: {shlex.join(['fp8-sinks', 'bench', request.kind, '--resume', str(folder)])}")
    return result


def _written_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _print(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
