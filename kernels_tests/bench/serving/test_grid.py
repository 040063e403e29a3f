"""`bench serving` with a grid on the command line, on fake servers."""

import json
from itertools import product

import pytest

from bench.kinds import read
from bench.serving import rates
from bench.suite import load
from kernels_tests.bench.conftest import rows

SUITE_GRID = load(None, "tiny_gpt_oss").grid
GRID = ("--prompt", "256,1024", "--output", "32", "--depth", "0, 512", "--concurrency", "1,4,16", "--runs", "2")


@pytest.fixture
def grids(monkeypatch):
    """The grid of each depth that is measured."""
    measure, grids = rates.measure_depth, []

    def recording(endpoint, grid, *arguments):
        if not rates.path(arguments[1], arguments[0]).exists():
            grids.append(grid)
        return measure(endpoint, grid, *arguments)

    monkeypatch.setattr(rates, "measure_depth", recording)
    return grids


def test_the_grid_of_the_command_line_is_measured_and_saved(bench, grids, tmp_path):
    bench("serving", "baseline", *GRID)
    fields = {"prompt": [256, 1024], "output": [32], "depth": [0, 512], "concurrency": [1, 4, 16], "runs": 2}
    saved = fields | {"load_depth": None}
    assert [grid.model_dump() for grid in grids] == [saved | {"depth": [depth]} for depth in (0, 512)]
    points = [rate.grid_point for rate in rows(tmp_path / "run")["baseline"].rates]
    assert points == [*product([0, 512], [256, 1024], [32], [1, 4, 16])]
    assert json.loads((tmp_path / "run" / "request.json").read_text())["grid"] == fields
    digest = json.loads((tmp_path / "run" / "baseline" / "digest.json").read_text())
    del saved["depth"]
    assert json.loads(digest["grid"]) == saved, "a depth has a step of its own"


def test_only_the_suites_load_depths_have_every_concurrency(bench, grids):
    bench("serving", "baseline")
    assert [(grid.depth, grid.concurrency) for grid in grids] == [([0], [1, 4, 16]), ([1024], [1])]


@pytest.mark.parametrize(
    ("option", "measured"),
    [
        (("--concurrency", "2,4"), [([0], [2, 4]), ([1024], [2, 4])]),
        (("--depth", "0,64"), [([0], [1, 4, 16]), ([64], [1, 4, 16])]),
        (("--output", "8"), [([0], [1, 4, 16]), ([1024], [1])]),
    ],
)
def test_every_pair_is_measured_where_depths_or_concurrencies_are_given(bench, grids, option, measured):
    bench("serving", "baseline", *option)
    assert [(grid.depth, grid.concurrency) for grid in grids] == measured


def test_options_replace_single_fields_of_the_suites_grid(bench, grids, suite_file):
    bench("serving", "baseline", "--suite", suite_file("grid: {output: [8, 16], depth: [0]}"), "--concurrency", "2,3")
    assert grids == [SUITE_GRID.replaced({"output": [8, 16], "depth": [0], "concurrency": [2, 3]})]


def test_a_resumed_run_has_the_same_grid(bench, grids, tmp_path):
    bench("serving", "baseline", *GRID)
    (tmp_path / "run" / "baseline" / "rates-512.json").unlink()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert len(grids) == 3 and grids[2] == grids[1]


def test_depths_of_the_suite_are_added_to_a_run_with_options(bench, suite_file, tmp_path):
    bench("serving", "baseline", "--suite", suite_file("grid: {depth: [0]}"), "--concurrency", "1,4")
    suite_file("grid: {depth: [0, 128]}")
    bench("serving", "--resume", str(tmp_path / "run"))
    assert [rate.depth for rate in rows(tmp_path / "run")["baseline"].rates] == [0, 0, 128, 128]


@pytest.mark.parametrize("option", [("--concurrency", "2"), ("--depth", "0,512"), ("--runs", "3"), ("--quick",)])
def test_a_resumed_run_takes_no_grid(bench, grids, tmp_path, option):
    bench("serving", "baseline")
    measured = len(grids)
    assert "--resume" in bench("serving", "--resume", str(tmp_path / "run"), *option, exit_code=2).stderr
    refused = bench("serving", "baseline", *option, "--run-dir", str(tmp_path / "run"), exit_code=2)
    assert f"other {'quick' if option == ('--quick',) else 'grid'}" in refused.stderr
    assert len(grids) == measured


def test_a_run_from_before_these_options_is_resumed(bench, tmp_path):
    bench("serving", "baseline")
    path = tmp_path / "run" / "request.json"
    request = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in request.items() if name not in ("grid", "quick")}))
    bench("serving", "--resume", str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["--prompt", "--output", "--depth", "--concurrency"])
@pytest.mark.parametrize("text", ["", "x", "1,", "1.5", "-1", "1 2", "4,4", "1,0x2"])
def test_an_invalid_list_of_counts_is_a_usage_error(bench, tmp_path, name, text):
    invocation = bench("serving", "baseline", name, text, exit_code=2)
    assert [name in line for line in invocation.stderr.splitlines() if line.startswith("Error")] == [True]
    assert not (tmp_path / "run").exists()


def test_an_output_of_a_single_token_is_a_usage_error(bench, tmp_path):
    bench("serving", "baseline", "--output", "1", exit_code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["--prompt", "--output", "--concurrency", "--runs"])
def test_only_a_depth_may_be_zero(bench, tmp_path, name):
    bench("serving", "baseline", name, "0", exit_code=2)
    assert not (tmp_path / "run").exists()
    bench("serving", "baseline", "--depth", "0")


def test_a_grid_beyond_the_served_context_is_refused_before_a_start(bench, servers, tmp_path):
    grid = ("--prompt", "1024", "--output", "64", "--depth", "0,2048")
    for options in ((), ("--dry-run",)):
        assert "3136 tokens" in bench("serving", "baseline", *grid, *options, exit_code=2).stderr
    assert servers.plans == [] and not (tmp_path / "run").exists()
    bench("serving", "baseline", *grid, "--", "--max-model-len", "3136")


def test_the_limits_of_goodput_are_those_of_the_run(bench, grids, tmp_path):
    bench("serving", "baseline", "--slo", "ttft=0.5s, itl=50ms")
    assert read(tmp_path / "run").slo == {"ttft": 500, "itl": 50}
    (tmp_path / "run" / "baseline" / "rates-1024.json").unlink()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert len(grids) == 3 and read(tmp_path / "run").slo == {"ttft": 500, "itl": 50}
    bench("serving", "--resume", str(tmp_path / "run"), "--slo", "ttft=1s", exit_code=2)
    refused = bench("serving", "baseline", "--slo", "ttft=1s", "--run-dir", str(tmp_path / "run"), exit_code=2)
    assert "other slo" in refused.stderr


def test_an_invalid_limit_is_a_usage_error(bench, tmp_path):
    invocation = bench("serving", "baseline", "--slo", "tpot=50", exit_code=2)
    assert ["--slo" in line for line in invocation.stderr.splitlines() if line.startswith("Error")] == [True]
    assert not (tmp_path / "run").exists()


def test_an_accuracy_run_has_no_grid(bench):
    bench("accuracy", "baseline", "--concurrency", "2", exit_code=2)


def quick_grid(**fields):
    return SUITE_GRID.first().replaced(fields)


def test_the_first_point_of_a_grid():
    assert SUITE_GRID.replaced({"concurrency": [4, 8]}).first().model_dump() == {
        "prompt": SUITE_GRID.prompt[:1],
        "output": SUITE_GRID.output[:1],
        "depth": [0],
        "concurrency": [4],
        "load_depth": None,
        "runs": 1,
    }


@pytest.mark.parametrize(
    ("options", "grid", "skipped"),
    [
        ((), quick_grid(), ["rates at 3 of 4 points"]),
        (("--runs", "5"), quick_grid(runs=5), ["rates at 3 of 4 points"]),
        (("--depth", "64,128"), quick_grid(depth=[64, 128]), ["rates at 4 of 6 points"]),
        (("--concurrency", "1,4"), quick_grid(concurrency=[1, 4]), ["rates at 2 of 4 points"]),
    ],
)
def test_a_quick_run_measures_the_first_point_and_explicit_options(bench, grids, tmp_path, options, grid, skipped):
    bench("serving", "baseline", "--quick", *options)
    assert grids == [grid.part_at(depth) for depth in grid.depth]
    assert rows(tmp_path / "run")["baseline"].left_out == ["log-probabilities", "sinks", "warm start", *skipped]
