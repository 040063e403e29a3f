"""What the commands share at a terminal: a console on stderr, a progress display, exit on a signal, problems."""

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import mean
from threading import Event, Thread
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from flashinfer_patches.errors import Problem

HEARTBEAT_S = 30.0  # between two lines in a log

console = Console(stderr=True)


class Step(NamedTuple):
    """A step of a run, finished when `path` exists. Steps of a `kind` take about the same time."""

    name: str
    kind: str
    path: Path


class Display(NamedTuple):
    """What a run reports to: plain text, no markup.

    status: replace the status, which is not kept. print_line: print a finished line above it. show_steps: set the
    steps, in the order of execution; may be called again.
    """

    status: Callable[[str], None]
    print_line: Callable[[str], None]
    show_steps: Callable[[list[Step]], None]


@contextmanager
def progress() -> Iterator[Display]:
    """Show the status and the steps on stderr until the block ends.

    Live on a terminal, else a plain line whenever nothing was printed for HEARTBEAT_S.
    """
    status, steps, started, printed = "preparing", [], time.time(), Event()

    def show_status(text: str) -> None:
        nonlocal status
        status = text

    def print_line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        printed.set()

    def show_steps(run_steps: list[Step]) -> None:
        nonlocal steps
        steps = run_steps

    def lines() -> list[str]:
        clock = time.time()
        return [f"{timedelta(seconds=int(clock - started))} {status}", *state_of(steps, started, clock)]

    is_terminal = console.is_interactive and console.file.isatty()  # FORCE_COLOR makes a pipe interactive
    with _live(lines) if is_terminal else _heartbeat(lines, print_line, printed):
        yield Display(show_status, print_line, show_steps)


def state_of(steps: list[Step], started: float, clock: float) -> list[str]:
    """One line: steps finished of all, the step after the current one, time left. Leaves out what is not known."""
    if not steps:
        return []
    ends = {step: step.path.stat().st_mtime for step in steps if step.path.exists()}
    unfinished = [step for step in steps if step not in ends]
    left = _seconds_left(unfinished, ends, started, clock)
    parts = [f"{len(ends)} of {len(steps)} steps done"]
    parts += [f"next {step.name}" for step in unfinished[1:2]]
    parts += [] if left is None else [f"about {max(math.ceil(left / 60), 1)} min left"]
    return [", ".join(parts)]


def _seconds_left(unfinished: list[Step], ends: dict[Step, float], started: float, clock: float) -> float | None:
    """Estimate from the steps that ended since `started`; None while a kind has none of them."""
    seconds, last_end = defaultdict(list), started
    for step, end in sorted(ends.items(), key=lambda item: item[1]):
        if end >= started:
            seconds[step.kind].append(end - last_end)
            last_end = end
    if not unfinished or any(step.kind not in seconds for step in unfinished):
        return None
    current, *later = [mean(seconds[step.kind]) for step in unfinished]
    return max(current - (clock - last_end), 0) + sum(later)


def _live(lines: Callable[[], list[str]]) -> Live:
    spinner = Spinner("dots")

    def render() -> Text:
        text = "\n  ".join(lines())
        return Text.assemble(spinner.render(console.get_time()), f" {text}", no_wrap=True, overflow="ellipsis")

    return Live(get_renderable=render, console=console, refresh_per_second=8, transient=True)


@contextmanager
def _heartbeat(lines: Callable[[], list[str]], print_line: Callable[[str], None], printed: Event) -> Iterator[None]:
    """Print the lines as one whenever `printed` was not set for HEARTBEAT_S, until the block ends."""
    ended = Event()

    def beat() -> None:
        while not ended.is_set():
            if not printed.wait(HEARTBEAT_S):
                print_line("; ".join(lines()))
            printed.clear()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        printed.set()
        thread.join()


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
