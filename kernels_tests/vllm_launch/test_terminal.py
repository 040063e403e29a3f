"""What the commands share at a terminal: progress, signals, problems."""

import io
import os
import queue
import signal
import threading

import pytest
from rich.console import Console

from flashinfer_patches.errors import Problem
from vllm_launch import terminal
from vllm_launch.terminal import Step

STARTED = 1_000_000.0
LIMIT_S = 60  # of a test that hangs


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ManualEvent:
    """An event whose waits return what is put into `results`; set() puts True and releases `sets`."""

    def __init__(self):
        self.results, self.sets, self.timeouts = queue.Queue(), threading.Semaphore(0), []

    def wait(self, timeout):
        self.timeouts.append(timeout)
        return self.results.get(timeout=LIMIT_S)

    def set(self):
        self.results.put(True)
        self.sets.release()

    def clear(self):
        pass


@pytest.fixture
def steps(tmp_path):
    return [
        Step(f"{profile}: {kind}", kind, tmp_path / f"{profile}-{kind}")
        for profile in ("baseline", "fp8")
        for kind in ("start", "rates")
    ]


def finish(step, seconds):
    step.path.touch()
    os.utime(step.path, (STARTED + seconds, STARTED + seconds))


def test_progress_prints_lines_as_they_are(monkeypatch):
    console = Console(file=io.StringIO(), width=40)
    monkeypatch.setattr(terminal, "console", console)
    lines = ["[/no/markup] " + 60 * "x", "second"]
    with terminal.progress() as display:
        for line in lines:
            display.status(f"[/status] {line}")
            display.print_line(line)
    assert console.file.getvalue().splitlines() == lines


def test_the_state_of_a_run_comes_from_the_files_of_its_steps(steps):
    assert terminal.state_of([], STARTED, STARTED) == []
    assert terminal.state_of(steps, STARTED, STARTED) == ["0 of 4 steps done, next baseline: rates"]
    finish(steps[0], 100)
    assert terminal.state_of(steps, STARTED, STARTED + 101) == ["1 of 4 steps done, next fp8: start"], "rates unknown"
    finish(steps[1], 400)
    for seconds, minutes in ((400, 7), (450, 6), (900, 5)):  # start 100 s, rates 300 s
        expected = [f"2 of 4 steps done, next fp8: rates, about {minutes} min left"]
        assert terminal.state_of(steps, STARTED, STARTED + seconds) == expected
    finish(steps[2], 1000)
    assert terminal.state_of(steps, STARTED, STARTED + 2000) == ["3 of 4 steps done, about 1 min left"]
    finish(steps[3], 2001)
    assert terminal.state_of(steps, STARTED, STARTED + 2002) == ["4 of 4 steps done"]


def test_steps_of_an_earlier_execution_are_done_and_give_no_estimate(steps):
    for step in steps[:2]:
        finish(step, -100)
    assert terminal.state_of(steps, STARTED, STARTED + 10) == ["2 of 4 steps done, next fp8: rates"]
    finish(steps[2], 50)
    assert terminal.state_of(steps, STARTED, STARTED + 60) == ["3 of 4 steps done"]


def test_a_log_has_a_line_whenever_nothing_was_printed_for_the_interval():
    printed, lines = ManualEvent(), queue.Queue()
    with terminal._heartbeat(lambda: ["fp8: starting", "1 of 2 steps done"], lines.put, printed):
        for was_printed in (False, True, False):
            printed.results.put(was_printed)
        for _ in range(2):
            assert lines.get(timeout=LIMIT_S) == "fp8: starting; 1 of 2 steps done"
    assert lines.empty() and set(printed.timeouts) == {terminal.HEARTBEAT_S}


def test_a_log_has_the_status_and_no_ansi_codes_and_nothing_after_the_block(monkeypatch, steps):
    printed = ManualEvent()
    console = Console(file=io.StringIO(), width=40, force_terminal=True)  # as FORCE_COLOR does
    monkeypatch.setattr(terminal, "console", console)
    monkeypatch.setattr(terminal, "Event", iter([printed, threading.Event()]).__next__)
    before = threading.active_count()
    with pytest.raises(SystemExit), terminal.progress() as display:
        display.show_steps(steps)
        display.status("fp8: starting")
        printed.results.put(False)
        assert printed.sets.acquire(timeout=LIMIT_S)
        raise SystemExit(130)
    assert threading.active_count() == before
    text = console.file.getvalue()
    assert "\x1b" not in text and text.count("\n") == 1
    assert "fp8: starting; 0 of 4 steps done" in text


def test_a_terminal_shows_status_and_state_and_keeps_the_lines_alone(monkeypatch, steps):
    console = Console(file=Terminal(), width=40, force_terminal=True, legacy_windows=False)
    monkeypatch.setattr(terminal, "console", console)
    with terminal.progress() as display:
        display.show_steps(steps)
        display.status("[/status] " + 60 * "x")
        display.print_line("finished")
    text = console.file.getvalue()
    assert "[/status]" in text and "0 of 4 steps done, next baseline" in text and "finished\n" in text
    assert 60 * "x" not in text, "cropped to the terminal's width"
    assert "\x1b[2K" in text.rpartition("steps done")[2], "erased at the end"


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
