"""`bench compare` of two engine results: their ratios to stock BF16, each of its own piece."""

import json

import pytest
from click.testing import CliRunner

from bench import cli
from bench.record import files
from kernels_tests.bench.engine.samples import an_engine_result, rows_of
from kernels_tests.bench.samples import two_profiles


@pytest.fixture
def compare(tmp_path):
    def invoke(a, b, *words):
        for name, result in (("a", a), ("b", b)):
            files.write(result, tmp_path / f"{name}.json")
        paths = [str(tmp_path / f"{name}.json") for name in "ab"]
        return CliRunner().invoke(cli.bench, ["compare", *paths, *words])

    return invoke


def slowed_down(rows):
    return [row.model_copy(update={"step_ms": 2 * row.step_ms}) for row in rows]


def test_steps_of_another_machine_cancel_out(compare):
    slower = an_engine_result(*slowed_down(rows_of()), identity="slower", compilation="default")
    points = json.loads(compare(an_engine_result(), slower, "--json").stdout)["points"]
    assert {(point["variant"], point["cell"]) for point in points} >= {
        ("plugin-fp8", "1x2048"),
        ("stock-fp8", "8x32768"),
    }
    for point in points:
        if point["cell"] != "full":
            assert point["ratio"]["value"] == pytest.approx(1) and point["ratio"]["noise"] > 0


def test_a_faster_variant_shows(compare):
    rows = [*rows_of("stock-bf16"), *slowed_down(rows_of("plugin-fp8"))]
    comparison = compare(an_engine_result(), an_engine_result(*rows, identity="b"))
    (line,) = [line for line in comparison.stdout.splitlines() if "8 x 32,768" in line]
    assert "2.000 ± " in line


def test_noise_of_single_starts_is_not_known(compare):
    single = an_engine_result(*rows_of(starts=1), identity="single")
    point = json.loads(compare(an_engine_result(), single, "--json").stdout)["points"][0]
    assert point["b"]["noise"] is None and point["ratio"]["noise"] is None and point["a"]["noise"] > 0


@pytest.mark.parametrize("changes", [{"shape": "gpt-oss-20b"}, {"routing": "dummy"}])
def test_another_model_or_routing_is_refused_unless_forced(compare, changes):
    second = an_engine_result(identity="b", **changes)
    assert compare(an_engine_result(), second).exit_code == 2
    forced = compare(an_engine_result(), second, "--force")
    assert forced.exit_code == 0 and "FORCED" in forced.stdout


def test_results_of_two_kinds_are_refused(compare):
    assert compare(an_engine_result(), two_profiles()).exit_code == 2


def test_steps_and_capacity_are_compared_with_fewer_gpus(compare):
    changes = {"tensor_parallel": 2, "capacity_tokens": 5_000_000}
    rows = [row.model_copy(update=changes | {"step_ms": row.step_ms / 2}) for row in rows_of("stock-bf16", "stock-fp8")]
    second = an_engine_result(*rows, identity="b")
    scaling = json.loads(compare(an_engine_result(), second, "--json").stdout)["scaling"]
    assert {point["variant"] for point in scaling} == {"stock-bf16", "stock-fp8"}
    steps = [point["ratio"] for point in scaling if point["cell"] not in (None, "full")]
    assert all(ratio["value"] == pytest.approx(0.5) and ratio["noise"] for ratio in steps)
    capacity = {point["variant"]: point["ratio"]["value"] for point in scaling if point["cell"] is None}
    assert capacity["stock-bf16"] == pytest.approx(5_000_000 / 1_642_172)
    assert "KV capacity" in compare(an_engine_result(), second).stdout
    assert json.loads(compare(an_engine_result(), an_engine_result(identity="b"), "--json").stdout)["scaling"] == []
