"""Forced decode and prefill scoring: the client against made-up answers."""

import threading
from types import SimpleNamespace

import pytest

from bench.accuracy import forced
from bench.accuracy.forced import Scored, Text
from flashinfer_patches.errors import Problem
from vllm_launch.model import EMBEDDED

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


@pytest.mark.parametrize("values", [[], [-1.0], [-1.0, -2.0, -3.0, -4.0]])
def test_another_number_of_log_probabilities_is_one_problem(monkeypatch, values):
    tops = [{"token_id:3": value} for value in values]
    decoded = {"token_ids": [8, 3, 5], "logprobs": {"token_logprobs": values, "top_logprobs": tops}}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [decoded]})
    with pytest.raises(Problem, match="expected 2 of each"):
        forced.decode(SERVER, [7, 8], [3, 5])
    tops = [{"3": {"logprob": value}, "5": {"logprob": value}} for value in values]
    prefilled = {"prompt_token_ids": [7, 8, 3, 5], "prompt_logprobs": [None, None, *tops]}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [prefilled]})
    with pytest.raises(Problem, match="expected 2 of each"):
        forced.prefill(SERVER, [7, 8, 3, 5], 2)


def test_no_log_probabilities_at_all_is_one_problem(monkeypatch):
    choice = {"token_ids": [8, 3], "prompt_token_ids": [7, 8, 3], "logprobs": None, "prompt_logprobs": None}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [choice]})
    with pytest.raises(Problem, match="of 0 tokens"):
        forced.decode(SERVER, [7, 8], [3])
    with pytest.raises(Problem, match="of 0 tokens"):
        forced.prefill(SERVER, [7, 8, 3], 2)


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


@pytest.mark.parametrize("value", [float("nan"), None])
def test_another_tokens_log_probability_that_is_no_number_is_a_problem_too(monkeypatch, value):
    best = {"2": {"logprob": -1.0}, "7": {"logprob": value}}
    answer = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, best]}
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
