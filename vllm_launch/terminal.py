"""What the commands share at a terminal: a console on stderr, a progress display, exit on a signal, problems."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flashinfer_patches.errors import Problem

console = Console(stderr=True)
Print = Callable[[str], None]


@contextmanager
def progress() -> Iterator[tuple[Print, Print]]:
    """Show a spinner with a status until the block ends; yields (show_status, print_line).

    show_status: replace the status, which is not kept. print_line: print a finished line above it. Neither reads
    markup in its text.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("preparing")
        yield (
            lambda text: display.update(task, description=text),
            lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
        )


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Exit with 128 + the signal's number on Ctrl-C, SIGTERM and SIGHUP, so that every `finally` ends its server."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_on_problems(problems: list[Problem]) -> None:
    """Print every problem and exit with the first one's code; do nothing if there are none."""
    for problem in problems[:-1]:
        problem.show()
    if problems:
        last = problems[-1]
        last.exit_code = problems[0].exit_code
        raise last
