"""Gates on rows: bounds, intervals, speed, memory, stability, artefacts."""

import pytest

from bench.rollout import gates
from bench.rollout.sweep import Gate, Speed
from kernels_tests.bench.rollout.samples import BF16_PSNR, a_row

GATE = Gate(cell="v8", base="bf16", drop_db=0.3, part="kv")
FAST = GATE.model_copy(update={"fps": Speed(cell="bf16", ratio=0.97)})


def verdict_of(gate=GATE, base=None, **row) -> str:
    rows = {"bf16": base or a_row("bf16"), "v8": a_row("v8", **row)}
    return gates.judge("gate", gate, rows).verdict


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        ((0.1, 0.2, 0.1, 0.2), "passed"),
        ((0.1, 0.6, 0.1, 0.2), "undecided"),
        ((0.5, 0.6, 0.5, 0.6), "failed"),
        ((-0.1, -0.1, -0.1, -0.1), "passed"),
    ],
)
def test_a_drop_is_judged_by_its_interval(drops, expected):
    assert verdict_of(drops=drops) == expected
    assert a_row("v8", drops).verdict == expected


def test_a_further_drop_is_measured_from_the_gates_base():
    """Both lie 1 dB below BF16: no drop from one to the other."""
    rows = {"mx8": a_row("mx8", (1.0,) * 4), "v8": a_row("v8", (1.1,) * 4), "bf16": a_row("bf16")}
    assert gates.judge("b", GATE.model_copy(update={"base": "mx8"}), rows).verdict == "passed"
    assert gates.judge("b", GATE, rows).verdict == "failed"


def test_the_worse_mode_counts():
    row = a_row("v8", (0.1,) * 4)
    worse = a_row("v8", (1.0,) * 4).quality["free-running"]
    row = row.model_copy(update={"quality": row.quality | {"free-running": worse}})
    assert gates.judge("gate", GATE, {"bf16": a_row("bf16"), "v8": row}).verdict == "failed"
    assert gates.quality_verdict(row) == "failed"


@pytest.mark.parametrize("name", ["black", "flat", "frozen"])
def test_an_artefact_fails_any_gate(name):
    assert verdict_of(artefacts={name: 1}) == "failed"
    assert a_row("v8", artefacts={name: 1}).verdict == "failed"


def test_memory_must_be_less():
    gate = GATE.model_copy(update={"smaller_than": "bf16"})
    assert verdict_of(gate, window_bytes=3999) == "passed"
    assert verdict_of(gate, window_bytes=4000) == "failed"


@pytest.mark.parametrize(
    ("ms", "expected"),
    [(9.0, "passed"), (10.2, "passed"), (10.0 / 0.97, "undecided"), (10.6, "failed")],
)
def test_speed_is_judged_with_its_noise(ms, expected):
    assert verdict_of(FAST, ms=ms) == expected


def test_emulated_linears_have_no_speed():
    assert verdict_of(FAST, kernel="emulated") == "not decidable"
    assert verdict_of(FAST, kernel="emulated", drops=(1.0,) * 4) == "failed"
    assert verdict_of(FAST, kernel="auto") == "passed"
    assert gates.no_speed(a_row("mx8", kernel="emulated", allocated=1)) == "on this GPU"


def test_speed_of_cold_frames_alone_is_undecided():
    assert verdict_of(FAST, times=None) == "undecided"


@pytest.mark.parametrize(
    ("lost", "expected"),
    [((0.0, 0.0, 0.0, 9.0), "passed"), ((0.0, 0.0, 9.0, 9.0), "failed")],
)
def test_clips_must_be_stable_to_the_end(lost, expected):
    gate = GATE.model_copy(update={"stable_clips": 3})
    assert verdict_of(gate, end=[before - less for before, less in zip(BF16_PSNR, lost, strict=True)]) == expected


def test_too_few_clips_are_undecided():
    gate = GATE.model_copy(update={"stable_clips": 3})
    rows = {"bf16": a_row("bf16", (0.0, 0.0)), "v8": a_row("v8", (0.0, 0.0))}
    assert gates.judge("gate", gate, rows).verdict == "undecided"


def test_a_cell_without_figures_leaves_the_gate_not_run():
    failed = a_row("v8").model_copy(update={"quality": {}, "error": "CUDA error"})
    judged = gates.judge("gate", GATE, {"bf16": a_row("bf16"), "v8": failed})
    assert judged.verdict == "not run" and "CUDA error" in judged.criteria[0].detail
    assert gates.judge("gate", GATE, {"bf16": a_row("bf16")}).verdict == "not run"
