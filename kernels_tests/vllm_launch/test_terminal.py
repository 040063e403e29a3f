"""What the commands share at a terminal: progress, signals, problems."""

import io
import signal

import pytest
from rich.console import Console

from flashinfer_patches.errors import Problem
from vllm_launch import terminal


def test_progress_prints_lines_as_they_are(monkeypatch):
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr(terminal, "console", console)
    lines = ["[/no/markup] " + 60 * "x", "second"]
    with terminal.progress() as (show_status, print_line):
        for line in lines:
            show_status(f"[/status] {line}")
            print_line(line)
    assert console.file.getvalue().splitlines()[: len(lines)] == lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_exits_through_finally_blocks(number):
    handler, cleaned = signal.getsignal(number), []
    with pytest.raises(SystemExit) as caught, terminal.signals_as_exit():
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)
    assert caught.value.code == 128 + number
    assert cleaned and signal.getsignal(number) == handler


def test_exit_on_problems_shows_every_problem_and_exits_with_the_code_of_the_first(capsys):
    first, last = Problem("file", "first", "rename it"), Problem("memory", "last", "free some")
    code = first.exit_code
    assert code != last.exit_code
    with pytest.raises(Problem) as caught:
        terminal.exit_on_problems([first, last])
    assert caught.value is last and caught.value.exit_code == code
    assert "first" in capsys.readouterr().err
    terminal.exit_on_problems([])
