"""Which decoder wins, and what the check of speed says."""

import pytest

from bench.certify import speed
from bench.kernels import grid
from bench.kernels.result import KernelRow
from flashinfer_patches import engine, jit_cache, package
from flashinfer_patches.errors import Problem
from flashinfer_patches.state import Status

CEILING = 4.4e12


def a_row(shape, kernel="sink-decode", us=100.0, rel_l2=1.7e-3, error=None):
    point = grid.parse(shape)
    figures = {"time_us": None, "rel_l2": None} if error else {"time_us": us, "samples_us": [us], "rel_l2": rel_l2}
    kv_bytes = grid.kv_bytes(point.shape, "e4m3")
    shape_fields = KernelRow.shape_fields(point.shape)
    return KernelRow(kernel=kernel, kv_format="e4m3", kv_bytes=kv_bytes, error=error, **shape_fields, **figures)


def rows(kernel="sink-decode", us=(12.0, 19.0, 65.0), **changes):
    return [a_row(shape, kernel, time_us, **changes) for shape, time_us in zip(speed.SHAPES, us, strict=True)]


def timings(*measured):
    return [speed._timing(row, CEILING) for row in measured if row.error is None]


def judged(measured, obstacle="FlashInfer is not installed"):
    return speed.verdict(measured, timings(*measured), CEILING, obstacle)


OURS, THEIRS = rows(), rows("fa2-sinks", (25.0, 39.0, 115.0))


def test_the_fastest_right_decoder_wins():
    assert speed.fastest(timings(*OURS)) == "lowp"
    assert speed.fastest(timings(*OURS, *THEIRS)) == "lowp"
    assert speed.fastest(timings(*rows(us=(30.0, 50.0, 120.0)), *THEIRS)) == "flashinfer"


@pytest.mark.parametrize(
    "measured",
    [
        [],
        rows(us=(12.0, 19.0, 200.0)),
        rows(rel_l2=5e-3),
        OURS[:2],
    ],
    ids=["nothing timed", "under half of the read ceiling", "wrong", "a shape missing"],
)
def test_stock_wins_without_a_right_and_fast_decoder(measured):
    assert speed.fastest(timings(*measured)) == "stock"


def test_a_wrong_peer_does_not_win():
    fast_and_wrong = rows("fa2-sinks", (1.0, 1.0, 60.0), rel_l2=1.0)
    assert speed.fastest(timings(*OURS, *fast_and_wrong)) == "lowp"


def test_right_rows_pass_with_the_share_of_the_ceiling():
    check = judged(OURS)
    assert check.verdict == "passed" and "94%" in check.detail and "FlashInfer is not installed" in check.detail
    assert "1.77 to 2.08 times" in judged(OURS + THEIRS, None).detail
    assert judged([*OURS, a_row(speed.SHAPES[0], "fa2-sinks", error="RuntimeError: x")], None).verdict == "passed"


def test_being_slow_is_no_failure():
    assert judged(rows(us=(500.0, 500.0, 5000.0))).verdict == "passed"


@pytest.mark.parametrize("change", [{"rel_l2": 5e-3}, {"error": "RuntimeError: illegal memory access"}])
def test_wrong_rows_of_ours_fail(change):
    check = judged([*OURS[:2], a_row(speed.SHAPES[2], **change)])
    assert check.verdict == "failed" and len(check.problems) == 1 and check.problems[0].startswith(speed.SHAPES[2])


def test_flashinfer_is_timed_only_where_nothing_must_be_compiled(monkeypatch, tmp_path):
    assert "not installed" in obstacle_with(monkeypatch, installed=None)
    status = Status(target=tmp_path, version="0.6.14", state="clean", files={}, patch_set=None, fingerprint="0" * 12)
    assert "patch apply" in obstacle_with(monkeypatch, installed=tmp_path, status=status)
    applied = status.model_copy(update={"state": "applied"})
    folder = tmp_path / "caches" / "one"
    assert "cache build" in obstacle_with(monkeypatch, installed=tmp_path, status=applied, folder=folder)
    jit_cache.built_once(folder, "sm90-sinks-bfloat16-bfloat16-64", lambda: None)
    assert "cache build" in obstacle_with(monkeypatch, installed=tmp_path, status=applied, folder=folder)
    jit_cache.built_once(folder, "sm90-sinks-bfloat16-float8_e4m3fn-64", lambda: None)
    assert obstacle_with(monkeypatch, installed=tmp_path, status=applied, folder=folder) is None


def test_a_broken_flashinfer_is_an_obstacle(monkeypatch, tmp_path):
    def broken():
        raise Problem("series", "a patch does not apply", "none")

    monkeypatch.setattr(package, "installed", lambda: tmp_path)
    monkeypatch.setattr(engine, "status", broken)
    assert speed.flashinfer_obstacle() == "a patch does not apply"


def obstacle_with(monkeypatch, installed, status=None, folder=None):
    monkeypatch.setattr(package, "installed", lambda: installed)
    monkeypatch.setattr(engine, "status", lambda: status)
    monkeypatch.setattr(jit_cache, "workspace", lambda: folder)
    return speed.flashinfer_obstacle()
