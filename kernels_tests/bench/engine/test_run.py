"""Runs of the engine bench: processes that die or hang, budgets, resuming."""

import json
import time

import pytest

from bench.engine import engines
from bench.engine import run as runs
from bench.engine.result import EngineResult, Piece
from flashinfer_patches.errors import Problem


def cells_of(result, variant, start=1):
    rows = [row for row in result.rows if (row.variant, row.start) == (variant, start)]
    return {row.cell: row.error for row in rows}


def test_stock_bf16_is_always_measured_and_first(fake_engines):
    result = fake_engines.execute("stock-fp8", starts=2)
    assert [(row.variant, row.start) for row in result.rows][::2] == [
        ("stock-bf16", 1),
        ("stock-fp8", 1),
        ("stock-bf16", 2),
        ("stock-fp8", 2),
    ]
    assert not result.left_out and result == EngineResult.model_validate_json(
        (fake_engines.folder / "result.json").read_bytes()
    )
    assert {row.cache for row in result.rows} == {"assumed"} and {row.vllm for row in result.rows} == {"0.32.0"}


def test_rows_hold_their_number_of_gpus_and_old_rows_a_single_gpu(fake_engines):
    result = fake_engines.execute("stock-fp8", tensor_parallel=2)
    assert {row.tensor_parallel for row in result.rows} == {2} and result.tensor_parallel == 2
    content = result.model_dump(mode="json")
    for row in content["rows"]:
        del row["tensor_parallel"]
    assert EngineResult.model_validate(content).tensor_parallel == 1


def test_later_starts_measure_judged_cells_alone(fake_engines):
    result = fake_engines.execute(cells=(), starts=2)
    assert len(cells_of(result, "stock-bf16")) == 10
    assert [*cells_of(result, "stock-bf16", 2)] == ["1x2048", "1x122880", "8x32768", "32x8192", "128x2048", "full"]


@pytest.mark.parametrize(
    ("fault", "reason"), [("exit", "exit code 7"), ("raise", "RuntimeError: CUDA error in ~/kernel")]
)
def test_a_process_that_dies_costs_a_cell(fake_engines, fault, reason):
    fake_engines.faults({"stock-fp8 4x512": fault})
    result = fake_engines.execute("stock-fp8", cells=("1x512", "4x512", "8x512"))
    errors = cells_of(result, "stock-fp8")
    assert errors["1x512"] is errors["8x512"] is None and reason in errors["4x512"]
    assert fake_engines.starts("stock-fp8-1") == 2 and fake_engines.starts("stock-bf16-1") == 1
    assert not any(cells_of(result, "stock-bf16").values())


def test_a_start_that_fails_costs_its_cells_alone(fake_engines):
    fake_engines.faults({"stock-fp8": "raise"})
    result = fake_engines.execute("stock-fp8", "plugin-fp8")
    assert all("RuntimeError" in error for error in cells_of(result, "stock-fp8").values())
    assert fake_engines.starts("stock-fp8-1") == 1 and not any(cells_of(result, "plugin-fp8").values())


def test_a_cell_that_an_engine_cannot_have_costs_no_start(fake_engines):
    fake_engines.faults({"stock-fp8 1x512": "error"})
    result = fake_engines.execute("stock-fp8")
    assert cells_of(result, "stock-fp8") == {"1x512": "no room", "4x512": None}
    assert fake_engines.starts("stock-fp8-1") == 1


def test_a_process_that_hangs_is_ended(fake_engines):
    fake_engines.faults({"stock-bf16 1x512": "hang"})
    fake_engines.patch.setattr(engines, "CELL_LIMIT_S", 3.0)
    errors = cells_of(fake_engines.execute(), "stock-bf16")
    assert "no sign of life" in errors["1x512"] and errors["4x512"] is None


def test_time_that_is_up_is_no_failure_and_a_resume_measures_the_others(fake_engines):
    fake_engines.faults({"stock-bf16 4x512": "hang"})
    row, clock = fake_engines.folder / "steps" / "stock-bf16-1" / "1x512.json", time.time
    with fake_engines.patch.context() as patch:
        # The time is up once the first cell has its row.
        patch.setattr(time, "time", lambda: clock() + (200 if row.exists() else 0))
        interrupted = fake_engines.execute("stock-fp8", seconds=100.0)
    assert cells_of(interrupted, "stock-bf16") == {"1x512": None}
    assert [(entry.variant, entry.cell) for entry in interrupted.left_out] == [
        ("stock-bf16", "4x512"),
        ("stock-fp8", "1x512"),
        ("stock-fp8", "4x512"),
    ]
    fake_engines.faults({"stock-bf16 1x512": "raise"})  # has its row already
    result = fake_engines.execute("stock-fp8")
    assert not result.left_out and not any(row.error for row in result.rows)
    assert result.rows[0] == interrupted.rows[0]


def test_no_engine_starts_in_the_last_seconds(fake_engines):
    fake_engines.patch.setattr(runs, "LEAST_START_S", {"cpu": 100.0})
    result = fake_engines.execute(seconds=60.0)
    assert result.rows == [] and len(result.left_out) == 2 and fake_engines.starts("stock-bf16-1") == 0


def test_a_finished_run_starts_nothing(fake_engines):
    first = fake_engines.execute()
    fake_engines.faults({"stock-bf16": "raise"})
    assert fake_engines.execute() == first


@pytest.mark.parametrize("change", [{"gpu": "another"}, {"commit": "fedcba"}])
def test_another_machine_or_commit_is_another_piece(fake_engines, change):
    fake_engines.execute()
    path = fake_engines.folder / "steps" / "piece.json"
    piece = Piece.model_validate_json(path.read_bytes())
    source = piece.provenance.model_copy(update={"git_commit": change.get("commit", piece.provenance.git_commit)})
    path.write_text(piece.model_copy(update={"gpu": change.get("gpu"), "provenance": source}).model_dump_json())
    with pytest.raises(Problem) as caught:
        fake_engines.execute()
    assert caught.value.kind == "software"


def test_stock_engines_have_no_variable_of_ours(fake_engines):
    """But for caches, and on a CPU for the plugin, which makes its FP8 cache right."""
    fake_engines.patch.setenv("FP8_SINKS_DECODER", "flashinfer")
    fake_engines.patch.setenv("FP8_SINKS_KV_SCALES", "scales.safetensors")
    fake_engines.execute("plugin-fp8")
    variables = {}
    for name in ("stock-bf16", "plugin-fp8"):
        line = next(
            line for line in (fake_engines.folder / f"{name}-1.log").read_text().splitlines() if "started " in line
        )
        variables[name] = json.loads(line.partition("started ")[2])
    shared = {"FP8_SINKS_KERNEL_CACHE", "FP8_SINKS_RUN", "FP8_SINKS_PLUGIN"}
    assert {*variables["stock-bf16"]} == shared
    assert {*variables["plugin-fp8"]} == shared | {"FP8_SINKS_DECODER", "FP8_SINKS_RECORD"}
    assert variables["plugin-fp8"]["FP8_SINKS_DECODER"] == "lowp"


@pytest.mark.parametrize(
    "names, profiled", [(("stock-fp8", "plugin-fp8"), "plugin-fp8"), (("stock-fp8",), "stock-fp8")]
)
def test_the_cell_where_our_backend_gains_least_is_profiled(fake_engines, names, profiled):
    result = fake_engines.execute(*names, profile=True)
    (profile,) = result.profiles
    assert [*profile.kernels] == ["stock-bf16", profiled] and profile.cell in ("1x512", "4x512")
    assert fake_engines.starts(f"{profiled}-profile-{profile.cell}") == 1


def test_a_profile_that_fails_is_reported(fake_engines):
    fake_engines.faults({"plugin-fp8": "raise"})
    result = fake_engines.execute("stock-fp8", "plugin-fp8", profile=True)
    (profile,) = result.profiles
    assert [*profile.kernels] == ["stock-bf16", "stock-fp8"]


def test_a_profile_without_time_is_reported_and_resumed(fake_engines):
    row, clock = fake_engines.folder / "steps" / "stock-fp8-1" / "4x512.json", time.time
    with fake_engines.patch.context() as patch:
        patch.setattr(time, "time", lambda: clock() + (200 if row.exists() else 0))
        assert fake_engines.execute("stock-fp8", profile=True, seconds=100.0).profiles == []
    assert sum("no time left" in line for line in fake_engines.lines) == 2
    assert len(fake_engines.execute("stock-fp8", profile=True).profiles) == 1
