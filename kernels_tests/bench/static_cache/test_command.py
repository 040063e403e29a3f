"""`fp8-sinks bench static-cache` where no GPU is, and on one."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench.cli import bench
from bench.static_cache import command, measure, run, shapes
from bench.static_cache.run import StaticCacheRequest
from bench.static_cache.shapes import BF16, FRAME_STORAGES, INT8, POINTS, Point
from kernels_tests.bench.static_cache.samples import CEILING, a_failed_row, a_row, a_static_cache_result
from vllm_launch.terminal import Display

QUIET = Display(*[lambda _: None] * 3)


def test_a_dry_run_lists_every_point():
    result = CliRunner().invoke(bench, ["static-cache", "--dry-run"])
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.output.splitlines()] == [str(point) for point in POINTS]


def test_a_folder_is_named_once(tmp_path):
    result = CliRunner().invoke(bench, ["static-cache", "--run-dir", str(tmp_path), "--resume", str(tmp_path)])
    assert result.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path):
    result = CliRunner().invoke(bench, ["static-cache", "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_measures_the_remaining_points(tmp_path, monkeypatch):
    measured, result = [], a_static_cache_result()
    monkeypatch.setattr(run, "_provenance", lambda _: result.provenance)
    monkeypatch.setattr(run, "read_ceiling", lambda: CEILING)

    def rows(point, *_):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point)
        return [a_row("attention", "ring", "flex", BF16, point)]

    monkeypatch.setattr(run, "measure_rows", rows)
    with pytest.raises(KeyboardInterrupt):
        run.execute(tmp_path, QUIET, [])
    measured.clear()
    monkeypatch.setattr(run, "POINTS", POINTS[:3])
    written = run.execute(tmp_path, QUIET, [])
    assert measured == [POINTS[2]] and [row.point for row in written.rows] == POINTS[:3]
    assert json.loads((tmp_path / "result.json").read_text())["kind"] == StaticCacheRequest().kind


@pytest.mark.parametrize(("ran", "exit_code"), [(False, 4), (True, 0)])
def test_a_kernel_that_never_ran_is_a_problem(tmp_path, monkeypatch, ran, exit_code):
    result = a_static_cache_result(None if ran else [a_failed_row("attention", "ring", "triton", INT8, POINTS[0])])
    monkeypatch.setattr(run, "problems", lambda _: [])
    monkeypatch.setattr(command, "run_in_folder", lambda *_: result)
    called = CliRunner().invoke(bench, ["static-cache", "--run-dir", str(tmp_path / "run")])
    assert called.exit_code == exit_code, called.output


@pytest.mark.gpu
def test_a_small_point_is_measured(monkeypatch):
    point = Point(16, 4096)
    monkeypatch.setattr(measure, "FRAME_POINTS", [point])
    monkeypatch.setattr(shapes, "MAIN_WINDOW", point.window)
    rows = measure.rows(point, CEILING, print)
    errors = [row for row in rows if row.error and row.backend == "triton"]
    assert not errors and len(rows) == 3 + len(shapes.STORAGES) + 3 * len(FRAME_STORAGES)
    for row in rows:
        if row.part == "attention" and not row.error:
            assert row.rel_l2 < 5e-3, row
    assert {row.storage for row in rows if row.peak_bytes} >= {INT8}
