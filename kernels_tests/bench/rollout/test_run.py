"""Whole runs with a script of known errors: drops, faults, gates and what they fall back to, resume."""

import math
import os
from pathlib import Path

import pytest

from bench.record.steps import load
from bench.rollout import measure, run
from bench.rollout.process import MODES
from bench.rollout.result import RolloutRow
from flashinfer_patches.errors import Problem
from kernels_tests.bench.rollout.samples import a_sweep
from vllm_launch.redaction import REPO

WORSE = {"fp8_kv": True, "error": 0.0202}  # BF16's is 0.02
EXPECTED = 20 * math.log10(0.0202 / 0.02)  # dB: 0.0864, in every clip
GATE = {"cell": "v8", "base": "bf16", "drop_db": 0.3, "part": "kv"}


def drop_is_right(result) -> bool:
    drops = [result.row("v8").quality[mode].drop for mode in MODES]
    return all(abs(drop.value - EXPECTED) < 1e-3 and drop.high - drop.low < 1e-3 for drop in drops)


def test_a_drop_is_that_of_the_errors(fake):
    result = fake.execute({"v8": WORSE})
    assert drop_is_right(result)
    row = result.row("v8")
    assert row.verdict == "passed"
    by_clip = [20 * math.log10(2 / (0.0202 * (1 + 0.1 * clip))) for clip in range(4)]
    assert row.quality["free-running"].psnr_by_clip == pytest.approx(by_clip, abs=1e-3)
    assert row.quality["free-running"].alike_psnr.value > 70
    assert row.times.fps_total == 100 and len(row.times.frame_ms) == 4 and row.times.cold_frames == [3]
    assert row.numerics["v"].scale == (0.5, 1.0, 2.0) and row.memory.window_bytes == 3000
    assert not [*(fake.folder / "steps" / "v8").glob("*.safetensors")]


def test_the_mutant_that_measures_a_drop_against_itself_is_seen(fake):
    real = measure.drop
    fake.patch.setattr(measure, "drop", lambda _base, variant: real(variant, variant))
    assert not drop_is_right(fake.execute({"v8": WORSE}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mxfp_enable": True, "fault": "swallowed"}, "no linear layer"),
        ({"fp8_kv": True, "fault": "swallowed cache"}, "cache is in BF16"),
        ({"mxfp_enable": True}, "equal the reference's"),
        ({"fp8_kv": True}, "equal the reference's"),
        ({"fault": "nan"}, "not finite"),
        ({"fault": "smaller"}, "size or range"),
        ({"fault": "refuse"}, "refused: kernel 'float8-row' needs SM89"),
        ({"fault": "die"}, "CUDA error"),
    ],
)
def test_a_cell_that_contradicts_its_settings_is_an_error(fake, settings, reason):
    result = fake.execute({"v8": settings}, gates={"g": GATE})
    row = result.row("v8")
    assert reason in row.error and row.verdict == "not run" and not row.quality
    assert result.gates[0].verdict == "not run" and len(fake.lines) == 1


@pytest.mark.parametrize("fault", ["black", "frozen"])
def test_artefacts_fail_the_gate(fake, fault):
    result = fake.execute({"v8": WORSE | {"fault": fault}}, gates={"g": GATE | {"drop_db": 50.0}})
    assert result.gates[0].verdict == "failed" and result.row("v8").quality["free-running"].artefacts[fault] == 1


@pytest.mark.parametrize("fault", ["die", "nan", "nan, shuffled"])
def test_a_reference_that_fails_ends_the_run(fake, fault):
    with pytest.raises(Problem) as caught:
        fake.execute({"bf16": {"fault": fault}})
    assert caught.value.kind == "server" and not (fake.folder / "result.json").exists()


@pytest.mark.parametrize("settings", [{"error": 0.25}, {"fault": "deaf"}])
def test_a_model_that_may_not_judge_stops_the_sweep(fake, settings):
    """It draws little more than the mean frame, or does not mind the controls."""
    with pytest.raises(Problem, match="may not judge") as caught:
        fake.execute({"bf16": settings, "v8": WORSE})
    assert caught.value.kind == "gate" and "\n" not in caught.value.message
    assert fake.calls("v8") == 0 and not (fake.folder / "result.json").exists()


def test_a_cell_is_run_only_after_its_gates_pass(fake):
    cells = {"v8": WORSE, "v4": {"settings": WORSE | {"error": 0.0203}, "requires": ["g"]}}
    passed = fake.execute(cells, gates={"g": GATE})
    assert passed.row("v4").quality


@pytest.mark.parametrize(("error", "verdict"), [(0.03, "failed"), (0.0202, "undecided")])
def test_a_gate_that_does_not_pass_keeps_its_cells_from_running(fake, error, verdict):
    clips = 1 if verdict == "undecided" else 4
    cells = {"v8": WORSE | {"error": error}, "v4": {"settings": WORSE, "requires": ["g"]}}
    result = fake.execute(cells, gates={"g": GATE}, clips=clips, judge={"beats_db": -9, "loses_db": -9})
    assert result.gates[0].verdict == verdict
    assert result.row("v4").error == f"not run: gate g {verdict}" and fake.calls("v4") == 0


FALLBACKS = {
    "kv": [
        {"name": "k-bf16", "when": {"k_fp8": [True]}, "settings": {"k_fp8": False}},
        {"name": "late8", "when": {"kv_late_layers": [0]}, "settings": {"kv_late_layers": 8, "error": 0.025}},
        {"name": "late4", "when": {"kv_late_layers": [8]}, "settings": {"kv_late_layers": 4, "error": 0.0202}},
        {"name": "late2", "when": {"kv_late_layers": [4]}, "settings": {"kv_late_layers": 2}},
    ],
    "speed": [{"name": "profiled", "profile": True}, {"name": "eager", "settings": {"compile": False, "ms": 9.0}}],
}


def test_a_failed_gate_falls_back_until_it_passes(fake):
    result = fake.execute({"v8": WORSE | {"error": 0.03}}, gates={"g": GATE}, fallbacks=FALLBACKS)
    (incident,) = result.incidents
    assert [step.cell for step in incident.steps] == ["v8+late8", "v8+late8+late4"]
    assert [step.verdict for step in incident.steps] == ["failed", "passed"]
    assert incident.outcome == "v8+late8+late4" and "drop" in incident.issue
    assert result.row(incident.outcome).settings["kv_late_layers"] == 4
    assert result.gates[0].verdict == "failed"


def test_a_gate_holds_where_speed_alone_cannot_be_decided(fake):
    gate = GATE | {"cell": "mx8", "part": "mx", "fps": {"cell": "bf16", "ratio": 0.97}}
    fallbacks = {"mx": [{"name": "mlp", "settings": {"error": 0.0202}}, {"name": "late8", "settings": {"error": 0.02}}]}
    result = fake.execute({"mx8": {"mxfp_enable": True, "error": 0.03}}, gates={"g": gate}, fallbacks=fallbacks)
    (incident,) = result.incidents
    assert [step.verdict for step in incident.steps] == ["not decidable"] and incident.outcome == "mx8+mlp"


def test_a_gate_that_nothing_saves_lists_every_step(fake):
    fallbacks = {"kv": [{"name": "late8", "settings": {"kv_late_layers": 8}}]}
    result = fake.execute({"v8": WORSE | {"error": 0.03}}, gates={"g": GATE}, fallbacks=fallbacks)
    (incident,) = result.incidents
    assert incident.outcome is None and len(incident.steps) == 1


def test_nothing_is_run_for_a_cache_that_is_not_smaller(fake):
    gate = GATE | {"smaller_than": "v8"}
    (incident,) = fake.execute({"v8": WORSE}, gates={"g": gate}, fallbacks=FALLBACKS).incidents
    assert (incident.steps, incident.outcome) == ([], None) and "memory" in incident.issue


def test_a_slow_cell_is_profiled_and_then_run_eagerly(fake):
    gate = GATE | {"fps": {"cell": "bf16", "ratio": 0.97}}
    result = fake.execute({"v8": WORSE | {"ms": 20.0}}, gates={"g": gate}, fallbacks=FALLBACKS)
    (incident,) = result.incidents
    assert [step.cell for step in incident.steps] == ["v8+profiled", "v8+profiled+eager"]
    profiled = result.row("v8+profiled").profile
    assert profiled.kernels[0].name == "gemm" and profiled.copies == 3
    assert incident.outcome == "v8+profiled+eager"


def test_a_run_is_resumed_where_it_ended(fake):
    cells = {"v8": WORSE, "v4": WORSE | {"error": 0.021}}
    roll_out = run.roll_out

    def interrupted(state, name, *arguments, **options):
        if name == "v4":
            raise KeyboardInterrupt
        roll_out(state, name, *arguments, **options)

    fake.patch.setattr(run, "roll_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fake.execute(cells)
    assert load(run_step(fake, "v8"), RolloutRow).quality and not (fake.folder / "result.json").exists()
    fake.patch.setattr(run, "roll_out", roll_out)
    result = fake.execute(cells)
    assert [row.cell for row in result.rows] == ["bf16", "v8", "v4"]
    assert [fake.calls(name) for name in ("bf16", "v8", "v4", run.SHUFFLED)] == [1, 1, 1, 1]
    assert fake.execute(cells) == result


def run_step(fake, cell):
    return fake.folder / "steps" / f"{cell}.json"


def test_a_resume_elsewhere_is_refused(fake):
    fake.execute({"v8": WORSE})
    collect = run.origin
    fake.patch.setattr(run, "origin", lambda *arguments: collect(*arguments).model_copy(update={"code": "other"}))
    with pytest.raises(Problem) as caught:
        fake.execute({"v8": WORSE})
    assert caught.value.kind == "software" and "commit" in caught.value.message


def test_another_sweep_in_the_same_folder_is_refused(fake):
    fake.execute({"v8": WORSE})
    with pytest.raises(Problem, match="sweep"):
        fake.execute({"v8": WORSE}, drop_db=0.4)


def test_variables_of_the_user_do_not_reach_a_rollout(fake):
    fake.patch.setenv("OWL_KV_BITS", "4")
    fake.patch.setenv("FP8_SINKS_PLUGIN", "1")
    variables = run.process.environment(fake.folder / "cache")
    assert not [name for name in variables if name.startswith("OWL_")] and "FP8_SINKS_PLUGIN" not in variables


def test_a_relative_python_path_holds_in_the_process(fake):
    """The process runs in the folder of its log: a relative path of PYTHONPATH would be another there."""
    fake.patch.setenv("PYTHONPATH", os.pathsep.join(["modules", "", "/absolute"]))
    paths = run.process.environment(fake.folder / "cache", Path("/script"))["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(REPO), "/script", str(Path("modules").resolve()), "/absolute"]


@pytest.mark.parametrize("cell", ["origin", "right", "linears", "shuffled-controls"])
def test_no_name_of_a_cell_is_that_of_a_step_of_the_run(fake, cell):
    result = fake.execute({cell: WORSE})
    assert result.row(cell).quality["free-running"].drop.value == pytest.approx(EXPECTED, abs=1e-3)


def test_mx_is_emulated_where_no_unit_has_it():
    settings = a_sweep().settings("mx8")
    assert run.settings_on("sm90", settings)["mxfp_kernel"] == "emulated"
    assert run.settings_on("sm100", settings) == settings == run.settings_on("sm12x", settings)
    explicit = settings | {"mxfp_kernel": "float8-row"}
    assert run.settings_on("sm90", explicit) == explicit
    assert "mxfp_kernel" not in run.settings_on("sm90", a_sweep().settings("bf16"))
