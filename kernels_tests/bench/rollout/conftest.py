"""Whole runs with a script that pretends to be a world model, under the real supervisor."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.record import run_folder
from bench.rollout import run as runs
from bench.rollout.request import RolloutRequest, RolloutRun
from kernels_tests.bench.rollout import fake_script
from kernels_tests.bench.rollout.samples import a_sweep
from vllm_launch.terminal import Display


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """`execute` runs a sweep of these cells; `calls` counts the processes of a cell."""
    pytest.importorskip("skimage", reason="no scikit-image: see locks/world-model.in")
    monkeypatch.setattr(runs, "linears", lambda _run: [])
    lines = []

    def execute(cells, **changes):
        cells = {"bf16": {}} | cells
        cells = {name: cell if "settings" in cell else {"settings": cell} for name, cell in cells.items()}
        sweep = a_sweep(**{"gates": {}} | changes, cells=cells)
        request = RolloutRequest(kind="rollout", sweep=sweep, script=fake_script.__file__, checkpoint=None)
        display = Display(status=lambda _text: None, print_line=lines.append, show_steps=lambda _steps: None)
        run = RolloutRun(tmp_path / "run", request, "cpu", "cpu", **display._asdict())
        with run_folder.opened(run.folder, run.request):
            return runs.execute(run, ["fp8-sinks"])

    def calls(name):
        path = tmp_path / "run" / "steps" / name / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    return SimpleNamespace(execute=execute, calls=calls, lines=lines, folder=tmp_path / "run", patch=monkeypatch)


@pytest.fixture
def script() -> Path:
    return Path(fake_script.__file__)
