"""Sweeps as data: what is read, and what is refused."""

import pytest
import yaml

from bench.rollout import sweep
from bench.rollout.fallback import cells
from bench.rollout.sweep import Fallback
from flashinfer_patches.errors import Problem
from kernels_tests.bench.rollout.samples import CELLS, GATES, a_sweep


def test_the_shipped_sweeps_are_read():
    assert "default" in sweep.LIBRARY.names
    for name in sweep.LIBRARY.names:
        assert sweep.load(name).name == name


def test_the_default_sweep_has_the_gates_of_the_matrix():
    default = sweep.load("default")
    assert {"a", "b", "c", "d", "v8", "v4", "kv8"} <= {*default.gates}
    assert default.clips >= 8 and default.frames >= 64 and (default.judge.beats_db, default.judge.loses_db) == (3, 1)
    assert {"mx", "kv", "speed"} == {*default.fallbacks}
    for name, cell in default.cells.items():
        if cell.settings.get("k_fp8") or cell.settings.get("kv_bits") == 4:
            assert cell.requires, f"{name} needs no gate"


def test_a_users_file_extends_a_shipped_sweep(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({"extends": "default", "clips": 2}))
    assert (sweep.load(str(path)).clips, sweep.load(str(path)).name) == (2, "short")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 8}, "context"),
        ({"reference": "fp32"}, "no cell 'fp32'"),
        ({"gates": {"g": GATES["a"] | {"base": "fp32"}}}, "no cell 'fp32'"),
        ({"gates": {"g": GATES["a"] | {"drop": 1}}}, "drop"),
        ({"cells": {name: {"settings": {}, "requires": ["z"]} for name in CELLS}}, "requires the gate 'z'"),
        ({"cells": {name: {"settings": {}, "requires": ["v8"]} for name in CELLS}}, "comes later"),
        ({"cells": {"../up": {"settings": {}}}}, "up"),
        ({"cells": {"bf16": {"settings": {}}, "v8.1": {"settings": {}}}}, "v8.1"),
        ({"clip": 2}, "clip"),
    ],
)
def test_a_wrong_sweep_is_refused(tmp_path, changes, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(a_sweep().model_dump(mode="json", exclude={"name"}) | changes))
    with pytest.raises(Problem) as caught:
        sweep.load(str(path))
    assert caught.value.kind == "sweep" and message in caught.value.message and "\n" not in caught.value.message


def test_an_absent_sweep_is_refused():
    with pytest.raises(Problem) as caught:
        sweep.load("absent")
    assert caught.value.exit_code == 2


def steps(gate: str, **requested) -> list[str]:
    default = sweep.load("default")
    defaults = {"mxfp_scope": "all", "mxfp_late_layers": 0, "mxfp_bits": 8, "k_fp8": False, "kv_late_layers": 0}
    defaults |= {"kv_bits": 8, "kv_mixed": 0, "v_scale": None, "compile": True}
    gate = default.gates[gate]
    return [name for name, _, _ in cells(gate, default.fallbacks[gate.part], defaults | requested)]


def test_linear_layers_fall_back_to_mlp_late_layers_and_8_bits():
    assert steps("d", mxfp_scope="mlp", mxfp_bits=4) == [
        "mx4-mlp+late12",
        "mx4-mlp+late12+late8",
        "mx4-mlp+late12+late8+bits8",
    ]
    assert steps("b")[0] == "mx8-all+mlp"


def test_caches_fall_back_to_bf16_keys_late_layers_token_scales_and_8_bits():
    names = [name.split("+")[-1] for name in steps("k4-late4", k_fp8=True, kv_late_layers=12, v_scale="ema", kv_bits=4)]
    assert names == ["k-bf16", "late8", "late4", "token-scales", "v8"]
    assert steps("k4-late4", kv_late_layers=4) == []


def test_a_step_that_does_not_apply_is_left_out():
    entry = Fallback(name="x", when={"kv_bits": [4], "k_fp8": [True]})
    assert entry.applies({"kv_bits": 4, "k_fp8": True}) and not entry.applies({"kv_bits": 4})
