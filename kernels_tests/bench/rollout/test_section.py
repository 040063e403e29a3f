"""The report of a rollout result: what it shows, and what it leaves out."""

import pytest

from bench.kinds import read
from bench.record import files
from bench.rollout import gates, tables
from bench.rollout.result import GateRow, Incident, LinearRow, Profiled
from bench.rollout.section import noise_floor, recommended, section
from kernels_tests.bench.rollout.samples import a_rollout_result, a_row, a_sweep


def text(result) -> str:
    part = section(result)
    return "\n".join([*part.page, *part.details])


def test_every_measured_cell_has_its_drops_and_its_verdict():
    result = a_rollout_result()
    table = tables.cell_table(result)
    for row in tables.measured(result):
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {row.cell} |")]
        assert line.split("|")[-2].strip() == row.verdict
    assert "v4" not in table and any("v4" in line for line in section(result).not_measured)


def test_emulated_linears_show_no_speed():
    result = a_rollout_result()
    (line,) = [line for line in tables.cell_table(result).splitlines() if line.startswith("| mx8 |")]
    assert "not decidable on a CPU" in line and "100" not in line
    assert "| mx8 |" not in tables.part_table(result)
    on_gpu = a_row("mx8", kernel="emulated", allocated=1)
    assert tables.fps(on_gpu) == "not decidable on this GPU"


def test_a_part_that_took_no_time():
    """Attention is 40% of 10 ms: without it 1000 / 6 = 167 FPS; the decoder 10%: 111 FPS."""
    row = a_row("bf16", ms=10.0)
    assert tables.part_share(row, ("attention",)) == pytest.approx(0.4)
    lines = tables.part_table(a_rollout_result(rows=[a_row("bf16", ms=12.0)], gates=[])).splitlines()
    assert "40%, 139 *" in lines[2] and "10%, 92.6 |" in lines[2]


def test_recommended_cells_have_passed():
    failed = a_row("v8", (1.0,) * 4, ms=1.0, window_bytes=1)
    assert recommended(a_rollout_result(rows=[a_row("bf16"), failed])) == recommended(
        a_rollout_result(rows=[a_row("bf16")])
    )
    fast = a_row("v8", ms=5.0, window_bytes=3000)
    fastest, smallest = recommended(a_rollout_result(rows=[a_row("bf16"), fast]))
    assert "v8" in fastest and "v8" in smallest


def test_a_rollout_that_drifts_below_copied_frames_is_marked():
    marked = "say little"
    assert marked not in text(a_rollout_result())
    drifted = a_row("bf16", (9.0,) * 4)
    assert marked in text(a_rollout_result(rows=[drifted], gates=[]))


def test_the_noise_floor_needs_a_cell_that_runs_otherwise():
    sweep = a_sweep(cells={"bf16": {"settings": {}}, "eager": {"settings": {}}}, gates={}, noise="eager")
    result = a_rollout_result(sweep=sweep, rows=[a_row("bf16"), a_row("eager", (0.01,) * 4)], gates=[])
    assert "45.0 dB" in noise_floor(result) and noise_floor(result) in text(result)
    same = a_row("eager").model_copy(update={"resolved": a_row("bf16").resolved})
    result = a_rollout_result(sweep=sweep, rows=[a_row("bf16"), same], gates=[])
    assert noise_floor(result) is None and any("noise" in line for line in section(result).not_measured)


def test_an_incident_lists_its_steps():
    failed = a_row("v8", (1.0,) * 4)
    profile = Profiled(kernels=[{"name": "gemm", "calls": 1, "us": 2000.0}], copies=7)
    step = a_row("v8+late8", (0.1,) * 4, profile=profile)
    gate = a_sweep().gates["v8"]
    rows = {"bf16": a_row("bf16"), "v8": failed, "v8+late8": step}
    judged = gates.judge("v8", gate.model_copy(update={"cell": "v8+late8"}), rows)
    incident = Incident(gate="v8", cell="v8", issue="drop", steps=[judged], outcome="v8+late8")
    blocks = "\n".join(tables.incident_blocks(a_rollout_result(rows=[*rows.values()], incidents=[incident])))
    assert (
        "It holds with v8+late8" in blocks
        and "gemm 2.00 ms; 7 copies" in blocks
        and a_rollout_result().provenance.machine.name[:4] in blocks
    )


def test_a_failed_verdict_is_bold():
    row = GateRow(gate="a", cell="v8", verdict="failed", criteria=[])
    assert "**failed**" in tables.gate_table([row])


def test_a_result_is_read_back_with_its_linears(tmp_path):
    shape = {"shape": "D x 4D", "tokens": 16, "inputs": 8, "outputs": 32}
    linears = [LinearRow(**shape, kernel="bf16", ms=0.5), LinearRow(**shape, kernel="mxfp8", error="needs SM100")]
    result = a_rollout_result(linears=linears)
    files.write(result, tmp_path / "result.json")
    assert read(tmp_path) == result
    assert "0.500" in text(result) and "needs SM100" in text(result)


def test_the_plot_is_drawn(tmp_path):
    section(a_rollout_result()).draw(tmp_path / "plot.png")
    assert 5_000 < (tmp_path / "plot.png").stat().st_size < 100_000
