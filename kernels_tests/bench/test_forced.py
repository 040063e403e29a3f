"""Forced decode and prefill scoring: the client against made-up answers, then real servers, right ones and broken."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import accuracy, forced
from bench.accuracy import Answers, AtText
from bench.forced import Scored, Text
from kernels_tests.processes import free_port
from vllm_launch import plan, profile, server, software
from vllm_launch.errors import Problem
from vllm_launch.model import EMBEDDED, find

ROOT = Path(__file__).parents[2]
SERVER = SimpleNamespace(plan=SimpleNamespace(model=SimpleNamespace(name="some-model")), log="some.log")


def log_p(position):
    return -0.5 - position


@pytest.fixture
def sent(monkeypatch):
    """Bodies sent, answered as vLLM does by a server whose token at position i has log-probability log_p(i)."""
    bodies = []

    def answer(server, body):
        bodies.append(body)
        prompt = body["prompt"]
        if "prompt_logprobs" in body:
            best = [{str(token): {"logprob": log_p(at)}, "999": {"logprob": -0.1}} for at, token in enumerate(prompt)]
            return {"choices": [{"prompt_token_ids": prompt, "prompt_logprobs": [None, *best[1:]]}]}
        ids = body["vllm_xargs"]["force_ids"]
        values = [log_p(len(prompt) + at) for at in range(len(ids))]
        best = [{f"token_id:{token}": value, "token_id:999": -0.1} for token, value in zip(ids, values, strict=True)]
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": values, "top_logprobs": best}}]}

    monkeypatch.setattr(forced, "post", answer)
    return bodies


def test_decode_and_prefill_score_the_same_positions(sent):
    expected = Scored(
        token_ids=[30, 40], logprobs=[log_p(3), log_p(4)], top=[{30: log_p(3), 999: -0.1}, {40: log_p(4), 999: -0.1}]
    )
    assert forced.decode(SERVER, [7, 8, 20], [30, 40]) == expected
    assert forced.prefill(SERVER, [7, 8, 20, 30, 40], 3) == expected


def test_decode_lets_prefill_sample_the_last_token_of_the_prompt(sent):
    forced.decode(SERVER, [7, 8, 90], [30, 40], top=5, cache_salt="salt")
    (body,) = sent
    assert body["prompt"] == [7, 8]
    assert body["vllm_xargs"] == {"force_ids": [90, 30, 40]} and body["max_tokens"] == 3
    assert body["logit_bias"] == {"90": 0}, "so that vLLM checks the vocabulary"
    assert (body["logprobs"], body["cache_salt"], body["temperature"]) == (5, "salt", 0)


@pytest.mark.parametrize(("prompt", "reference"), [([7], [8]), ([7, 8], [])])
def test_decode_needs_a_token_for_prefill_and_one_to_score(sent, prompt, reference):
    with pytest.raises(ValueError, match="expected 2 prompt tokens and 1 to score"):
        forced.decode(SERVER, prompt, reference)


@pytest.mark.parametrize("start", [0, 3])
def test_prefill_scores_neither_the_first_token_nor_nothing(sent, start):
    with pytest.raises(ValueError, match="expected 1 <= start < 3"):
        forced.prefill(SERVER, [1, 2, 3], start)


def test_a_server_that_decodes_other_tokens_is_a_problem(monkeypatch):
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [{"token_ids": [9, 3, 5], "logprobs": None}]})
    with pytest.raises(Problem) as problem:
        forced.decode(SERVER, [8, 9], [3, 4])
    assert problem.value.kind == "requests"
    assert "position 2 on: got [5], expected [4]" in problem.value.message
    assert "--logits-processors" in problem.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None])
def test_a_log_probability_that_is_no_number_is_a_problem(monkeypatch, value):
    answer = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"2": {"logprob": value}}]}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [answer]})
    with pytest.raises(Problem, match=f"token 0 is {value}, expected a finite number"):
        forced.prefill(SERVER, [1, 2], 1)


def test_score_all_keeps_the_order_salts_its_cache_and_tells_progress(sent):
    texts, told = [Text(ids=[1, 2, 3, at], start=3) for at in range(20)], []
    scored = forced.score_all(SERVER, texts, "decode", at_once=4, progress=lambda *done: told.append(done))
    assert [one.token_ids for one in scored] == [[at] for at in range(20)]
    assert told == [(done, 20) for done in range(1, 21)]
    forced.score_all(SERVER, texts, "prefill")
    salts = [body["cache_salt"] for body in sent]
    assert len(set(salts[:20])) == len(set(salts[20:])) == 1 and salts[0] != salts[-1]


def test_score_all_stops_at_the_first_failure(monkeypatch):
    lock, calls = threading.Lock(), []

    def refuse(server, body):
        with lock:
            calls.append(body)
        raise Problem("requests", "HTTP 400", "see the log")

    monkeypatch.setattr(forced, "post", refuse)
    with pytest.raises(Problem, match="HTTP 400"):
        forced.score_all(SERVER, [Text(ids=[1, 2, 3], start=2)] * 1000, "decode", at_once=2)
    assert len(calls) < 1000


def test_the_forcer_fits_the_runner_that_vllm_uses():
    by_server = {
        ("cpu", "0.32.0+cpu"): "forcer",
        ("gpu", "0.26.0"): "forcer",
        ("gpu", "0.33.0+cu130"): "forcer_v2",
    }
    for (device, version), module in by_server.items():
        expected = {"logits-processors": f"vllm_launch.plugin.{module}:ForceTokens", "max-logprobs": 20}
        assert forced.arguments(device, version) == expected


def test_tokenize_adds_no_special_tokens(tmp_path):
    ids = forced.tokenize(EMBEDDED, "The capital of France is<|end|>")
    assert len(ids) > 3 and ids[-1] == 3 and ids[0] > 5
    with pytest.raises(Problem, match=r"tokenizer\.json"):
        forced.tokenize(tmp_path, "text")


# With real servers.

CONTEXT = 128  # the shortest of the profile's
TOKENS = 96  # of a short text


def serve(name, folder, **environment):
    """A server of a profile with the token forcer, as a context manager."""
    one = profile.load(name)
    extra = forced.arguments(*software.vllm_build())
    planned = plan.make(one, port=free_port(), cache_root=folder, model_path=str(EMBEDDED), extra=extra)
    planned = planned.model_copy(update={"environment": planned.environment | environment})
    return server.running(planned, folder, say=lambda line: None)


def heldout_texts():
    """`long`: the profile's own texts of its shortest context; `short`: the ends of some, after a prompt of 2."""
    settings = profile.load("fp8").model_settings("tiny_gpt_oss").accuracy
    longs = [text for text in accuracy.texts(find(str(EMBEDDED)), settings) if text.start == CONTEXT]
    return {"long": longs, "short": [Text(ids=text.ids[:TOKENS], start=2) for text in longs[:4]]}


def distance(a, b):
    """Mean |delta log p|, nats."""
    texts = zip(a, b, strict=True)
    deltas = [abs(x - y) for one, other in texts for x, y in zip(one.logprobs, other.logprobs, strict=True)]
    return sum(deltas) / len(deltas)


def score(running, texts):
    return {
        "decode": forced.score_all(running, texts["long"], "decode"),
        "prefill": forced.score_all(running, texts["long"], "prefill"),
    }


@pytest.fixture(scope="module")
def scored(tmp_path_factory, fp8_cache):
    """Scores by server (`bf16`, `fp8`, or FP8 with a mutant), then by path; `short` is decode with no prefill."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder, texts = tmp_path_factory.mktemp("forced"), heldout_texts()
    with serve("baseline", folder) as running:
        found = {"bf16": score(running, texts)}
        with pytest.raises(Problem, match=r"HTTP 400.*out-of-vocab") as refused:
            forced.decode(running, [7, 8], [9, 4096])
        assert refused.value.kind == "requests"
        with pytest.raises(Problem, match=r"HTTP 400.*force_ids: expected max_tokens 1"):
            forced._choice(running, {"prompt": [7], "vllm_xargs": {"force_ids": [8]}}, None)
        special = forced.decode(running, [7, 8], [4, 0, 5, 4095])
        assert special.token_ids == [4, 0, 5, 4095], "the end of text does not end the request"
    return found | (scored_in_fp8(folder, texts, found["bf16"]) if fp8_cache else {})


def scored_in_fp8(folder, texts, bf16):
    """Scores by server, of FP8 and of FP8 with each mutant, beside BF16's for the table that is printed."""
    from kernels_tests.mutants import attention

    found = {}
    info = folder / "plugin" / "fp8_sinks_mutants-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fp8-sinks-mutants\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nmutants = kernels_tests.mutants:register\n")
    mutant = folder / "mutant"
    mutant.write_text(attention.NONE)
    path = os.pathsep.join(map(str, (info.parent, ROOT)))
    with serve("fp8", folder, PYTHONPATH=path, **{attention.VARIABLE: str(mutant)}) as running:
        found["fp8"] = score(running, texts)
        found["fp8"]["short"] = forced.score_all(running, texts["short"], "decode")
        for name in attention.NAMES:
            mutant.write_text(name)
            found[name] = score(running, texts)
            if name in ("decode", "prefill"):
                found[name]["short"] = forced.score_all(running, texts["short"], "decode")
    print("\nmean |delta log p|: against bf16 in decode, in prefill; decode against prefill of the same server")
    for name, paths in {"bf16": bf16, **found}.items():
        against = [distance(paths[way], bf16[way]) for way in ("decode", "prefill")]
        print(f"{name:14}", *(f"{value:.4f}" for value in (*against, distance(paths["decode"], paths["prefill"]))))
    return found


@pytest.fixture
def judged(scored):
    """A function: a server's answers held against BF16's by the bounds of profile fp8."""
    thresholds = profile.load("fp8").model_settings("tiny_gpt_oss").thresholds

    def answers(name):
        both = zip(scored[name]["decode"], scored[name]["prefill"], strict=True)
        return Answers(source="heldout", at=[AtText(context=CONTEXT, decode=one, prefill=two) for one, two in both])

    return lambda name: accuracy.judge(answers("bf16"), answers(name), thresholds, "baseline")


@pytest.mark.server
@pytest.mark.parametrize("name", ["bf16", pytest.param("fp8", marks=pytest.mark.fp8_cache)])
def test_forced_decode_agrees_with_prefill_on_the_same_server(scored, name):
    """Another path over the same cache: what remains is the order of BF16 sums, and codes that it tips over."""
    assert distance(scored[name]["decode"], scored[name]["prefill"]) < 0.02


@pytest.mark.server
def test_every_position_has_its_best_tokens_and_the_one_given(scored):
    for path in ("decode", "prefill"):
        for one in scored["bf16"][path]:
            for token, value, top in zip(one.token_ids, one.logprobs, one.top, strict=True):
                assert len(top) in (20, 21) and top[token] == value


@pytest.mark.server
@pytest.mark.fp8_cache
def test_fp8_costs_what_rounding_costs(scored):
    for path in ("decode", "prefill"):
        assert 0.05 < distance(scored["fp8"][path], scored["bf16"][path]) < 0.2


@pytest.mark.server
@pytest.mark.fp8_cache
def test_the_right_fp8_cache_passes_every_gate(judged):
    record = judged("fp8")
    assert record.passed and not record.failed_gates
    assert {gate.path for gate in record.gates if gate.passed} == {"decode", "prefill", "paths"}


@pytest.mark.server
@pytest.mark.fp8_cache
@pytest.mark.parametrize(
    ("mutant", "paths"),
    [
        ("decode", {"paths"}),
        ("prefill", {"paths"}),
        ("k_scale", {"decode", "prefill"}),
        ("v_scale", {"decode", "prefill"}),
        ("sinks_dropped", {"decode", "prefill"}),
        ("sinks_shifted", {"decode", "prefill"}),
        ("e5m2", {"decode", "prefill"}),
        ("truncated", {"decode", "prefill"}),
    ],
)
def test_every_mutant_fails_the_gate_that_should_see_it(judged, mutant, paths):
    failed = {(gate.path, gate.figure) for gate in judged(mutant).failed_gates}
    assert {(path, "mean_abs_delta") for path in paths} <= failed


@pytest.mark.server
@pytest.mark.fp8_cache
@pytest.mark.parametrize("path", ["decode", "prefill"])
def test_rounding_costs_at_most_six_tenths_of_truncation(scored, path):
    rounded, truncated = (distance(scored[name][path], scored["bf16"][path]) for name in ("fp8", "truncated"))
    assert rounded <= 0.6 * truncated


# A 5% error hides behind FP8's own against BF16 (0.14 for 0.13 nats), so these two look at FP8 servers alone.


@pytest.mark.server
@pytest.mark.fp8_cache
def test_a_broken_decode_kernel_moves_decode_alone(scored):
    right, broken = scored["fp8"], scored["decode"]
    assert distance(broken["decode"], right["decode"]) > 0.05
    assert distance(broken["short"], right["short"]) > 0.05
    assert distance(broken["prefill"], right["prefill"]) < 0.02


@pytest.mark.server
@pytest.mark.fp8_cache
def test_a_broken_prefill_kernel_moves_prefill_and_no_decode_without_one(scored):
    right, broken = scored["fp8"], scored["prefill"]
    assert distance(broken["prefill"], right["prefill"]) > 0.05
    assert distance(broken["short"], right["short"]) < 0.02


@pytest.mark.server
@pytest.mark.fp8_cache
@pytest.mark.parametrize("mutant", ["decode", "prefill"])
def test_one_broken_kernel_shows_as_decode_against_prefill_of_its_server(scored, mutant):
    """Without any reference server: the rounding of the cache cancels."""
    right, broken = (distance(scored[name]["decode"], scored[name]["prefill"]) for name in ("fp8", mutant))
    assert broken > 0.05 and broken > 4 * right
