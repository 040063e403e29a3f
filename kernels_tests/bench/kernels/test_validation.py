"""`bench kernels --validate`: E4M3 with and without scales, and int8, on the embedded model and on synthetic data."""

import json

import pytest
from click.testing import CliRunner

from bench.kernels import validation
from fp8_sinks.cli import main
from lowp.formats import FORMATS
from vllm_launch import model
from vllm_launch.scales import collect

pytestmark = pytest.mark.usefixtures("single_thread")

FORMAT_BOUND = 0.10  # the worst head of E4M3 on randn


@pytest.fixture(scope="module")
def synthetic(single_thread):
    """The rows of each synthetic data set."""
    cases = list(validation.synthetic())
    return {case.data: list(validation.validate(case)) for case in cases}


def test_the_cases_of_the_model_give_its_own_attention(monkeypatch):
    """Queries, keys, sinks and windows of each layer belong together."""
    outputs, load = [], collect.load

    def load_with_hooks(*arguments, **options):
        loaded = load(*arguments, **options)
        for layer in loaded.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _linear, inputs: outputs.append(inputs[0]))
        return loaded

    monkeypatch.setattr(collect, "load", load_with_hooks)
    cases = list(validation.tiny_model())
    for case, output in zip(cases, outputs[-len(cases) :], strict=True):
        exact = validation._attention(case, case.states).flatten(2)
        assert (output[:, -validation.QUERY_TOKENS :] - exact).norm() < 0.01 * exact.norm()
    assert {case.window_left for case in cases} == {127, -1}


def errors(rows, cache):
    return [row.rel_l2[cache] for row in rows]


def test_scales_change_nothing_on_randn(synthetic):
    for cache in ("e4m3", "e4m3-tensor", "e4m3-head"):
        assert all(0.02 < error < FORMAT_BOUND for error in errors(synthetic["randn"], cache))


def test_int8_is_closer_than_e4m3(synthetic):
    """On every data set and in every head; scales per token and head are closer than calibrated ones."""
    for rows in synthetic.values():
        dynamic, static, e4m3 = (errors(rows, cache) for cache in ("int8", "int8-static", "e4m3-head"))
        assert all(
            0.001 < token < channel < 0.6 * head for token, channel, head in zip(dynamic, static, e4m3, strict=True)
        )


def test_large_heads_need_scales(synthetic):
    assert min(errors(synthetic["large"], "e4m3")) > 0.3 and min(row.saturated for row in synthetic["large"]) > 0.1
    assert max(errors(synthetic["large"], "e4m3-tensor") + errors(synthetic["large"], "e4m3-head")) < FORMAT_BOUND


def test_uneven_heads_need_a_scale_each(synthetic):
    unscaled, tensor, head = (errors(synthetic["uneven"], f"e4m3{part}") for part in ("", "-tensor", "-head"))
    assert unscaled[0] > 0.5 and unscaled[-1] > 0.5 and tensor[0] > 0.5
    assert max(head) < FORMAT_BOUND


def test_the_command_writes_rows_of_both(tmp_path):
    words = ["bench", "kernels", "--validate", "--run-dir", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    written = (tmp_path / "run" / "validation.json").read_text()
    assert json.loads(result.stdout)["rows"] == json.loads(written)["rows"]
    result = validation.Validation.model_validate_json(written)
    assert {row.kv_format for row in result.attention} == set(FORMATS) and (
        tmp_path / "run" / "validation.png"
    ).exists()
    rows = result.rows
    tiny = [row for row in rows if row.data == model.EMBEDDED.name]
    assert len(tiny) == 8 and len(rows) == 8 + 3 * 8
    for row in tiny:
        assert row.saturated == 0 and set(row.rel_l2) == set(validation.CACHES)
        assert all(0.001 < error < FORMAT_BOUND for error in row.rel_l2.values())
        assert row.rel_l2["int8"] < row.rel_l2["int8-static"] < 0.6 * row.rel_l2["e4m3-head"]
    assert CliRunner().invoke(main, words).exit_code == 2  # not overwritten


@pytest.mark.parametrize("options", [["--dry-run"], ["--kernel", "sink-decode"], ["--shape", "8x8192"]])
def test_it_takes_no_options_of_a_run(tmp_path, options):
    words = ["bench", "kernels", "--validate", "--run-dir", str(tmp_path / "run"), *options]
    assert CliRunner().invoke(main, words).exit_code == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("cache", ["e4m3-head", "int8", "int8-static"])
@pytest.mark.parametrize("mutant", ["k_scale", "v_scale"])
def test_a_forgotten_scale_shows(monkeypatch, mutant, cache):
    """The reference must be given the scales of K and of V."""
    attention = validation._attention
    monkeypatch.setattr(
        validation, "_attention", lambda case, stored, **scales: attention(case, stored, **(scales | {mutant: None}))
    )
    monkeypatch.setattr(validation, "CACHES", (cache,))
    case = next(validation.synthetic())
    assert min(errors(validation.validate(case), cache)) > 0.3


MIXED_UP = {
    "heads of K": lambda k, v: (k.flip(0), v),
    "heads of V": lambda k, v: (k, v.flip(0)),
    "channels of K": lambda k, v: (k.roll(1, 1), v),
    "channels read as heads": lambda k, v: (k.flatten().view(k.shape[1], k.shape[0]).t().contiguous(), v),
}


@pytest.mark.parametrize("mutant", MIXED_UP)
def test_mixed_up_scales_of_int8_show(synthetic, monkeypatch, mutant):
    """Stored with the right scales, read with others."""
    attention = validation._attention

    def mixed_up(case, stored, **scales):
        if scales:
            scales["k_scale"], scales["v_scale"] = MIXED_UP[mutant](scales["k_scale"], scales["v_scale"])
        return attention(case, stored, **scales)

    monkeypatch.setattr(validation, "_attention", mixed_up)
    monkeypatch.setattr(validation, "CACHES", ("int8-static",))
    case = next(case for case in validation.synthetic() if case.data == "uneven")
    wrong, right = errors(validation.validate(case), "int8-static"), errors(synthetic["uneven"], "int8-static")
    assert max(wrong) > 5 * max(right)
