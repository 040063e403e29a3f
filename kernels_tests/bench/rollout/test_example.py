"""The six-cell sweep through the world model itself, with random weights: slow, since each cell imports torch."""

import sys
from pathlib import Path

import pytest
import torch

from bench.record import run_folder
from bench.rollout import run as runs
from bench.rollout.process import MODES
from bench.rollout.request import SCRIPT, RolloutRequest, RolloutRun
from kernels_tests.bench.rollout.samples import a_sweep
from kernels_tests.lowp.mx_models import needs_torchao
from vllm_launch.terminal import Display

pytestmark = [pytest.mark.long, needs_torchao]
INT8 = {"fp8_kv": True, "kv_storage": "i8_scale"}
CELLS = {
    "bf16": {"settings": {}},
    "mx8-mlp": {"settings": {"mxfp_enable": True, "mxfp_scope": "mlp"}},
    "mx8-all": {"settings": {"mxfp_enable": True}},
    "v-int8": {"settings": INT8},
    "kv-int8-late1": {"settings": INT8 | {"k_fp8": True, "kv_late_layers": 1}, "requires": ["v8"]},
    "mx8-v-mx8": {"settings": {"mxfp_enable": True, "fp8_kv": True}},
}
GATES = {
    "a": {"cell": "mx8-mlp", "base": "bf16", "drop_db": 1.0, "part": "mx", "fps": {"cell": "bf16", "ratio": 0.97}},
    "v8": {"cell": "v-int8", "base": "bf16", "drop_db": 9.0, "part": "kv", "smaller_than": "bf16"},
}
CHANGES = {"clips": 2, "judge": {"beats_db": -99, "loses_db": -99}}
CHANGES["common"] = {"mxfp_enable": False, "fp8_kv": False, "kv_late_layers": 0}
# A torchao that is swallowed: every rollout runs, and says that it converted its layers.
SWALLOWED = """
import runpy, sys
sys.path.insert(0, {folder!r})
from world import rollout
class Audit:
    count, categories = 1, {{"mlp": 1}}
    table = str
rollout.transform = lambda plan, model: Audit() if plan.settings.mxfp_enable else None
rollout.audit_record = lambda audit: {record}
runpy.run_path({script!r}, run_name="__main__")
"""
RECORDS = {
    "silent": {"format": "mxfp8", "kernel": "emulated", "layers": [], "categories": {}},
    "lying": {"format": "mxfp8", "kernel": "emulated", "layers": [{"sqnr": 28.0}], "categories": {"mlp": 1}},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    sys.path.insert(0, str(SCRIPT.parent))
    from world.checkpoint import save_checkpoint
    from world.config import Config
    from world.model import WorldModel

    torch.manual_seed(0)
    small = WorldModel(Config(layers=2, dim=64, heads=2, mlp=64, global_frames=3, local_frames=2, global_every=2))
    with torch.no_grad():
        for block in small.blocks:
            block.modulation.normal_(std=0.5)
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_checkpoint(small, path)
    return path


def execute(folder: Path, checkpoint: Path, cells: dict, gates: dict, script: Path = SCRIPT):
    sweep = a_sweep(**CHANGES, cells=cells, gates=gates)
    request = RolloutRequest(kind="rollout", sweep=sweep, script=str(script), checkpoint=str(checkpoint))
    display = Display(lambda _text: None, [].append, lambda _steps: None)
    run = RolloutRun(folder, request, "cpu", "cpu", **display._asdict())
    with run_folder.opened(run.folder, run.request):
        return runs.execute(run, ["fp8-sinks"])


def test_six_cells_of_two_clips(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(runs, "linears", lambda _run: [])
    result = execute(tmp_path / "run", checkpoint, CELLS, GATES)
    assert [row.cell for row in result.rows] == [*CELLS] and not [row.error for row in result.rows if row.error]
    assert {gate.gate: gate.verdict for gate in result.gates} == {"a": "not decidable", "v8": "passed"}
    for row in result.rows[1:]:
        assert all(row.quality[mode].alike_psnr.value > 20 for mode in MODES)
    layers = {row.cell: row.transform.layers for row in result.rows if row.transform}
    assert 0 < layers["mx8-mlp"] < layers["mx8-all"] == layers["mx8-v-mx8"]
    assert result.row("kv-int8-late1").numerics["k"].scale and not result.row("v-int8").numerics["k"].scale
    sizes = [result.row(cell).memory.window_bytes for cell in ("mx8-v-mx8", "v-int8", "bf16")]
    assert sizes == sorted(sizes) and len({*sizes}) == 3


@pytest.mark.parametrize(("fault", "reason"), [("silent", "no linear layer"), ("lying", "equal the reference's")])
def test_the_mutant_that_swallows_the_transform_is_seen(tmp_path, checkpoint, monkeypatch, fault, reason):
    monkeypatch.setattr(runs, "linears", lambda _run: [])
    script = tmp_path / "swallowed.py"
    script.write_text(SWALLOWED.format(folder=str(SCRIPT.parent), script=str(SCRIPT), record=RECORDS[fault]))
    cells = {name: CELLS[name] for name in ("bf16", "mx8-mlp")}
    result = execute(tmp_path / "run", checkpoint, cells, {}, script)
    assert reason in result.row("mx8-mlp").error


def test_a_profile_names_operators_and_copies(tmp_path, checkpoint):
    from bench.rollout.process import Task, execute
    from bench.rollout.result import Profiled

    settings = {"mxfp_enable": False, "fp8_kv": False}
    fields = {"clips": 1, "frames": 4, "context": 1, "clip_seed": 7, "seed": 0, "modes": [], "speed": False}
    task = Task(checkpoint=str(checkpoint), device="cpu", settings=settings, profile=True, **fields)
    execute(SCRIPT, task, tmp_path / "cell", tmp_path / "cache")
    profile = Profiled.model_validate_json((tmp_path / "cell" / "profile.json").read_bytes())
    assert profile.kernels[0].us >= profile.kernels[-1].us and profile.copies > 0
