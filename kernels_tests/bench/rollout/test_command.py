"""The command line of the rollout bench, and what keeps a run from starting."""

import json

import pytest
import yaml
from click.testing import CliRunner

from bench import cli
from bench.kinds import read
from bench.rollout import request
from kernels_tests.bench.rollout.samples import a_sweep

CELLS = {"bf16": {"settings": {}}, "v8": {"settings": {"fp8_kv": True, "error": 0.03}}}
GATE = {"cell": "v8", "base": "bf16", "drop_db": 0.3, "part": "kv"}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.bench, ["rollout", *words])


@pytest.fixture
def sweep_file(tmp_path):
    sweep = a_sweep(cells=CELLS, gates={"g": GATE}).model_dump(mode="json", exclude={"name"})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sweep))
    return "small.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ["--sweep", "absent"],
        ["--sweep", "absent.yaml"],
        ["--resume", "run", "--sweep", "default"],
        ["--resume", "run", "--checkpoint", "x"],
        ["--resume", "absent"],
        ["--script", "absent.py"],
        ["--script", __file__, "--checkpoint", "absent.safetensors"],
    ],
)
def test_the_command_line_is_checked(bench, tmp_path, words):
    assert bench(*words).exit_code == 2
    assert not [*tmp_path.iterdir()]


def test_a_dry_run_prints_the_cells_and_gates_in_order(bench, sweep_file, tmp_path):
    lines = bench("--dry-run", "--sweep", sweep_file).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bf16", "v8", "gate"]
    assert [path.name for path in tmp_path.iterdir()] == [sweep_file]


def test_the_default_script_is_the_examples():
    assert request.SCRIPT.is_file()


def test_a_whole_run_is_written_resumed_and_reported(bench, fake, sweep_file, script, tmp_path):
    words = ["--sweep", sweep_file, "--script", str(script), "--run-dir", "run"]
    failed = bench(*words)
    assert failed.exit_code == 3 and "g" in failed.stderr
    assert read(tmp_path / "run").gates[0].verdict == "failed" and (tmp_path / "run" / "report.md").exists()
    (tmp_path / sweep_file).unlink()
    resumed = bench("--resume", "run", "--json")
    assert json.loads(resumed.stdout) == read(tmp_path / "run").model_dump(mode="json")
    assert fake.calls("v8") == 1


def test_a_run_in_which_every_cell_fails_is_a_failure(bench, script, tmp_path):
    cells = {"bf16": {"settings": {}}, "v8": {"settings": {"fault": "refuse"}}}
    sweep = a_sweep(cells=cells, gates={"g": GATE}).model_dump(mode="json", exclude={"name"})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sweep))
    ended = bench("--sweep", "small.yaml", "--script", str(script), "--run-dir", "run")
    assert ended.exit_code == 1 and "float8-row" in ended.stderr
    assert read(tmp_path / "run").rows
