"""What every command does at a terminal: talk on stderr, end on a signal, refuse."""

import signal
from contextlib import contextmanager

from rich.console import Console

from flashinfer_patches.errors import Problem

talk = Console(stderr=True)


def refuse(problems: list[Problem]) -> None:
    """Print every problem and exit with the first one's code; nothing where there is none."""
    for problem in problems[:-1]:
        problem.show()
    if problems:
        last = problems[-1]
        last.exit_code = problems[0].exit_code
        raise last


@contextmanager
def signals_as_exit():
    """Ctrl-C, SIGTERM and SIGHUP leave with 128 + their number, through every `finally`, so that servers are ended."""

    def leave(number, _frame):
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
