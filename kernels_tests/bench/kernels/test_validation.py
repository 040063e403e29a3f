"""`bench kernels --validate`: E4M3 without scales against scales, on the embedded model and on synthetic data."""

import json

import pytest
import torch
from click.testing import CliRunner

from bench.kernels import validation
from fp8_sinks.cli import main
from vllm_launch import model
from vllm_launch.scales import collect

FORMAT_BOUND = 0.10  # the worst head of E4M3 on randn


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Threads on busy cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def synthetic():
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


def errors(rows, granularity):
    return [row.rel_l2[granularity] for row in rows]


def test_scales_change_nothing_on_randn(synthetic):
    for granularity in validation.GRANULARITIES:
        assert all(0.02 < error < FORMAT_BOUND for error in errors(synthetic["randn"], granularity))


def test_large_heads_need_scales(synthetic):
    assert min(errors(synthetic["large"], "none")) > 0.3 and min(row.saturated for row in synthetic["large"]) > 0.1
    assert max(errors(synthetic["large"], "tensor") + errors(synthetic["large"], "head")) < FORMAT_BOUND


def test_uneven_heads_need_a_scale_each(synthetic):
    unscaled, tensor, head = (errors(synthetic["uneven"], name) for name in validation.GRANULARITIES)
    assert unscaled[0] > 0.5 and unscaled[-1] > 0.5 and tensor[0] > 0.5
    assert max(head) < FORMAT_BOUND


def test_the_command_writes_rows_of_both(tmp_path):
    words = ["bench", "kernels", "--validate", "--run-dir", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    written = (tmp_path / "run" / "validation.json").read_text()
    assert json.loads(result.stdout)["rows"] == json.loads(written)["rows"]
    rows = validation.Validation.model_validate_json(written).rows
    tiny = [row for row in rows if row.data == model.EMBEDDED.name]
    assert len(tiny) == 8 and len(rows) == 8 + 3 * 8
    for row in tiny:
        assert row.saturated == 0 and all(0.01 < error < FORMAT_BOUND for error in row.rel_l2.values())
    assert CliRunner().invoke(main, words).exit_code == 2  # not overwritten


@pytest.mark.parametrize("options", [["--dry-run"], ["--kernel", "sink-decode"], ["--shape", "8x8192"]])
def test_it_takes_no_options_of_a_run(tmp_path, options):
    words = ["bench", "kernels", "--validate", "--run-dir", str(tmp_path / "run"), *options]
    assert CliRunner().invoke(main, words).exit_code == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("mutant", ["k_scale", "v_scale"])
def test_a_forgotten_scale_shows(synthetic, monkeypatch, mutant):
    """The reference must be given the scales of K and of V."""
    attention = validation._attention
    monkeypatch.setattr(
        validation, "_attention", lambda case, stored, **scales: attention(case, stored, **(scales | {mutant: None}))
    )
    case = next(validation.synthetic())
    assert min(errors(validation.validate(case), "head")) > 0.3
