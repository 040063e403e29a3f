"""Whole runs with a process that pretends to be an engine, under the real supervisor."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench.engine import engines
from bench.engine import run as runs
from bench.engine.request import EngineRequest, resolve
from bench.record import run_folder
from kernels_tests.bench.engine import fake_process
from vllm_launch.terminal import Display


@pytest.fixture
def fake_engines(monkeypatch, tmp_path):
    """`execute` runs a request, `faults` sets what goes wrong; `starts` counts the processes of a variant's start."""
    monkeypatch.setattr(engines, "PROCESS", fake_process.__name__)
    monkeypatch.setattr(engines, "CELL_S", 0.0)
    monkeypatch.setattr(engines, "OVER_S", 0.0)
    monkeypatch.setattr(engines, "GRACE_S", 0.5)
    monkeypatch.setattr(runs, "LEAST_START_S", {"cpu": 0.0})
    lines = []

    def faults(entries):
        monkeypatch.setenv("FAKE_ENGINE", json.dumps(entries))

    def execute(*variants, cells=("1x512", "4x512"), starts=1, seconds=60.0, **changes):
        fields = {"shape": "tiny", "compilation": "default", "routing": "spread", "starts": starts, "steps": 4}
        request = EngineRequest(
            kind="engine", variants=[*(variants or ("stock-bf16",))], cells=[*cells], **fields | changes
        )
        display = Display(status=lambda _text: None, print_line=lines.append, show_steps=lambda _steps: None)
        run = replace(resolve(tmp_path / "run", request, "cpu", "0.32.0", seconds), **display._asdict())
        with run_folder.opened(run.folder, run.request):
            return runs.execute(run, ["fp8-sinks"])

    def starts(name):
        log = tmp_path / "run" / f"{name}.log"
        return log.read_text().count("started ") if log.exists() else 0

    return SimpleNamespace(
        execute=execute, faults=faults, starts=starts, lines=lines, folder=tmp_path / "run", patch=monkeypatch
    )
