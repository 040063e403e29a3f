"""`bench serving` with a grid on the command line, on fake servers."""

import json
from itertools import product

import pytest

from bench.serving import rates
from bench.suite import load
from kernels_tests.bench.conftest import rows

SUITE_GRID = load(None, "tiny_gpt_oss").grid
GRID = ("--prompt", "256,1024", "--output", "32", "--depth", "0, 512", "--concurrency", "1,4,16", "--runs", "2")


@pytest.fixture
def grids(monkeypatch):
    """The grid of each depth that is measured."""
    measure, grids = rates.measure, []

    def recording(endpoint, grid, *arguments):
        if not rates.path(arguments[1], arguments[0]).exists():
            grids.append(grid)
        return measure(endpoint, grid, *arguments)

    monkeypatch.setattr(rates, "measure", recording)
    return grids


def test_the_grid_of_the_command_line_is_measured_and_saved(bench, grids, tmp_path):
    bench("serving", "baseline", *GRID)
    fields = {"prompt": [256, 1024], "output": [32], "depth": [0, 512], "concurrency": [1, 4, 16], "runs": 2}
    assert [grid.model_dump() for grid in grids] == [fields, fields], "a call for each depth"
    points = [rate.grid_point for rate in rows(tmp_path / "run")["baseline"].rates]
    assert points == [*product([0, 512], [256, 1024], [32], [1, 4, 16])]
    assert json.loads((tmp_path / "run" / "request.json").read_text())["grid"] == fields
    digest = json.loads((tmp_path / "run" / "baseline" / "digest.json").read_text())
    del fields["depth"]
    assert json.loads(digest["grid"]) == fields, "a depth has a step of its own"


def test_options_replace_single_fields_of_the_suites_grid(bench, grids, suite_file):
    bench("serving", "baseline", "--suite", suite_file("grid: {output: [8, 16], depth: [0]}"), "--concurrency", "2,3")
    assert grids == [SUITE_GRID.replaced({"output": [8, 16], "depth": [0], "concurrency": [2, 3]})]


def test_a_resumed_run_has_the_same_grid(bench, grids, tmp_path):
    bench("serving", "baseline", *GRID)
    (tmp_path / "run" / "baseline" / "rates-512.json").unlink()
    bench("serving", "--resume", str(tmp_path / "run"))
    assert len(grids) == 3 and grids[2] == grids[0]


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
        "runs": 1,
    }


@pytest.mark.parametrize(
    ("options", "grid", "skipped"),
    [
        ((), quick_grid(), ["rates at 1 of 2 points"]),
        (("--runs", "5"), quick_grid(runs=5), ["rates at 1 of 2 points"]),
        (("--depth", "64,128"), quick_grid(depth=[64, 128]), []),
        (("--concurrency", "1,4"), quick_grid(concurrency=[1, 4]), ["rates at 2 of 4 points"]),
    ],
)
def test_a_quick_run_measures_the_first_point_and_explicit_options(bench, grids, tmp_path, options, grid, skipped):
    bench("serving", "baseline", "--quick", *options)
    assert grids == [grid] * len(grid.depth)
    assert rows(tmp_path / "run")["baseline"].left_out == ["log-probabilities", "sinks", "warm start", *skipped]
