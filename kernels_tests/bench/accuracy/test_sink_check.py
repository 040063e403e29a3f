"""The sink check on the embedded model itself: a server with wrong sinks must fail, whatever is wrong with them."""

import json
import os
import types

import numpy as np
import psutil
import pytest

from bench import suite
from bench.accuracy import sink_check
from bench.accuracy.forced import Scored
from bench.accuracy.texts import texts_of
from bench.accuracy.verdicts import SinkCheck
from bench.suite import SinkBounds
from bench.suite import Texts as TextSettings
from flashinfer_patches.errors import Problem
from vllm_launch import model, profile

MODEL = model.find(str(model.EMBEDDED))
PROFILES = ("baseline", "fp8", "fp8-skip-sliding")
SETTINGS = TextSettings(source="heldout", contexts=[{"context": 128, "texts": 3, "tokens": 64}])
TEXTS = texts_of(MODEL, SETTINGS)


def bounds(name: str) -> SinkBounds:
    return suite.load(None, MODEL.name).thresholds_of(profile.load(name)).sinks


@pytest.fixture(scope="module")
def exact():
    """Log-probabilities by transformers, for each kind of sinks."""
    pytest.importorskip("transformers")
    return sink_check.of_transformers(MODEL, TEXTS)


def test_transformers_leaves_the_environment_that_servers_inherit(monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def loads(*_, **__):
        os.environ["KMP_INIT_AT_FORK"] = "FALSE"
        os.environ["OMP_NUM_THREADS"] = "1"
        raise ValueError("as far as this test goes")

    monkeypatch.setattr(transformers.GptOssForCausalLM, "from_pretrained", loads)
    before = dict(os.environ)
    with pytest.raises(ValueError, match="as far"):
        sink_check.of_transformers(MODEL, TEXTS)
    assert dict(os.environ) == before


def served(values, tokens=64) -> list[Scored]:
    """A server's prefill with these log-probabilities."""
    rows = np.asarray(values).reshape(-1, tokens)
    return [Scored(token_ids=[0] * tokens, logprobs=row.tolist(), top=[{0: 0.0}] * tokens) for row in rows]


@pytest.fixture
def checked(exact):
    """check() on a server's values; transformers' are computed once."""
    return lambda values, limits: sink_check.check(served(values), exact, limits)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("sinks", sink_check.WRONG)
def test_a_server_with_wrong_sinks_fails(checked, exact, name, sinks):
    check = checked(exact[sinks], bounds(name))
    assert check.status == "FAILED" and check.mean_abs_delta[sinks] == 0
    assert check.mean_abs_delta["true"] > 3 * bounds(name).mean_abs_delta


@pytest.mark.parametrize(("name", "noise"), [("baseline", 0.02), ("fp8", 0.1)])
def test_a_server_with_the_true_sinks_passes_with_its_rounding(checked, exact, name, noise):
    rough = np.array(exact["true"]) + np.random.default_rng(1).laplace(0, noise, len(exact["true"]))
    check = checked(rough, bounds(name))
    assert check.status == "passed" and check.tokens == 3 * 64
    assert check.mean_abs_delta["true"] == pytest.approx(noise, rel=0.2)
    assert set(check.mean_abs_delta) == {"true", *sink_check.WRONG}


def test_a_server_halfway_to_wrong_sinks_fails(checked, exact):
    check = checked(np.add(exact["true"], exact["shifted by one head"]) / 2, bounds("fp8"))
    assert check.status == "FAILED"


def test_the_factor_alone_judges_too(checked, exact):
    halfway = np.add(exact["true"], exact["zeroed"]) / 2
    assert checked(halfway, SinkBounds(mean_abs_delta=9.0, factor=2)).status == "FAILED"
    assert checked(exact["true"], SinkBounds()).status == "not judged"


def test_distances_that_are_no_numbers_are_a_failed_check_that_can_be_written(tmp_path):
    distances = dict.fromkeys(("true", *sink_check.WRONG), 3.0) | {"doubled": float("nan")}
    check = sink_check.verdict(distances, 64, bounds("fp8"))
    assert check.status == "FAILED" and "not finite" in check.reason
    assert SinkCheck.model_validate_json(check.model_dump_json()) == check


def test_transformers_values_are_those_of_its_plain_forward(exact):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(MODEL.path, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([TEXTS[1].ids])
    with torch.no_grad():
        logp = plain(input_ids=ids).logits.log_softmax(-1)[0]
    expected = [logp[position - 1, ids[0, position]].item() for position in range(128, 128 + 64)]
    assert exact["true"][64:128] == pytest.approx(expected, abs=1e-4)
    assert np.mean(exact["true"]) > -4, "a trained model on held-out text"


def test_too_little_memory_is_an_obstacle_with_the_figures(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=10_000_000))
    assert "0.0 GiB are free" in sink_check.obstacle(MODEL, TEXTS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"has_sinks": False}, "no sinks"), ({"architecture": "LlamaForCausalLM"}, "LlamaForCausalLM")],
)
def test_models_that_it_cannot_check_are_an_obstacle(change, reason):
    assert reason in sink_check.obstacle(MODEL.model_copy(update=change), TEXTS)


def test_without_prompt_log_probabilities_it_is_not_run():
    check = sink_check.not_run(sink_check.obstacle(MODEL, []), bounds("fp8"))
    assert check.status == "not run" and "prompt log-probabilities" in check.reason and check.mean_abs_delta == {}


def test_the_embedded_model_has_no_obstacle():
    assert sink_check.obstacle(MODEL, TEXTS) is None


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"dtype": "bfloat16"}, 2),
        ({"torch_dtype": "float32"}, 1),
        ({"quantization_config": {"quant_method": "mxfp4"}}, 4 / (17 / 32)),
    ],
)
def test_bytes_in_fp32_follow_how_the_weights_are_stored(tmp_path, config, factor):
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = MODEL.model_copy(update={"path": str(tmp_path), "weight_bytes": 13_000_000_000})
    assert sink_check.fp32_bytes(stored) == pytest.approx(13e9 * factor)


def test_the_real_model_does_not_fit_a_small_machine(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "mxfp4"}}')
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=128 << 30))
    large = MODEL.model_copy(update={"path": str(tmp_path), "weight_bytes": 65 << 30})
    reason = sink_check.obstacle(large, TEXTS)
    assert "587.3 GiB" in reason and "128.0 GiB are free" in reason


def test_a_saved_check_is_judged_by_changed_bounds(checked, exact):
    saved = checked(exact["true"], SinkBounds(mean_abs_delta=0.1, factor=4))
    assert sink_check.judged(saved, SinkBounds(mean_abs_delta=0.1, factor=4)) == saved
    moved = checked(np.add(exact["true"], 0.05), SinkBounds(mean_abs_delta=0.1))
    assert sink_check.judged(moved, SinkBounds(mean_abs_delta=0.01)).status == "FAILED"
    not_run = sink_check.not_run("no memory", SinkBounds())
    assert sink_check.judged(not_run, SinkBounds(factor=2)) == sink_check.not_run("no memory", SinkBounds(factor=2))


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"quantization_config": None}, True),
        ({"quantization_config": "mxfp4"}, False),
        ({"dtype": ["bfloat16"]}, False),
    ],
)
def test_a_config_of_an_unknown_form_is_a_problem(tmp_path, changes, accepted):
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"} | changes))
    model = MODEL.model_copy(update={"path": str(tmp_path)})
    if accepted:
        assert sink_check.fp32_bytes(model) == 2 * MODEL.weight_bytes
        return
    with pytest.raises(Problem) as caught:
        sink_check.fp32_bytes(model)
    assert caught.value.kind == "model" and next(iter(changes)) in caught.value.message
