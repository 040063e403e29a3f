"""Forced decode and prefill scoring: the client against fake answers."""

import threading

import pytest

from bench.accuracy import forced
from bench.accuracy.forced import Scored
from bench.accuracy.texts import Text
from bench.servers.client import Endpoint
from flashinfer_patches.errors import Problem

ENDPOINT = Endpoint("http://127.0.0.1:1", "some-model", "some-folder", "some.log")


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
            tops = [{str(token): {"logprob": log_p(i)}, "999": {"logprob": -0.1}} for i, token in enumerate(prompt)]
            return {"choices": [{"prompt_token_ids": prompt, "prompt_logprobs": [None, *tops[1:]]}]}
        ids = body["vllm_xargs"]["force_ids"]
        values = [log_p(len(prompt) + i) for i in range(len(ids))]
        tops = [{f"token_id:{token}": value, "token_id:999": -0.1} for token, value in zip(ids, values, strict=True)]
        return {"choices": [{"token_ids": ids, "logprobs": {"token_logprobs": values, "top_logprobs": tops}}]}

    monkeypatch.setattr(forced, "post", answer)
    return bodies


def test_decode_and_prefill_score_the_same_positions(sent):
    expected = Scored(
        token_ids=[30, 40], logprobs=[log_p(3), log_p(4)], top=[{30: log_p(3), 999: -0.1}, {40: log_p(4), 999: -0.1}]
    )
    assert forced.decode(ENDPOINT, [7, 8, 20], [30, 40]) == expected
    assert forced.prefill(ENDPOINT, [7, 8, 20, 30, 40], 3) == expected


def test_decode_lets_prefill_sample_the_last_token_of_the_prompt(sent):
    forced.decode(ENDPOINT, [7, 8, 90], [30, 40], top=5, cache_salt="salt")
    (body,) = sent
    assert body["prompt"] == [7, 8]
    assert body["vllm_xargs"] == {"force_ids": [90, 30, 40]} and body["max_tokens"] == 3
    assert body["logit_bias"] == {"90": 0}, "so that vLLM checks the vocabulary"
    assert (body["logprobs"], body["cache_salt"], body["temperature"]) == (5, "salt", 0)


@pytest.mark.parametrize(("prompt", "reference"), [([7], [8]), ([7, 8], [])])
def test_decode_needs_a_token_for_prefill_and_a_token_to_score(sent, prompt, reference):
    with pytest.raises(ValueError, match="expected 2 prompt tokens and 1 to score"):
        forced.decode(ENDPOINT, prompt, reference)


@pytest.mark.parametrize("start", [0, 3])
def test_prefill_scores_neither_the_first_token_nor_nothing(sent, start):
    with pytest.raises(ValueError, match="expected 1 <= start < 3"):
        forced.prefill(ENDPOINT, [1, 2, 3], start)


@pytest.mark.parametrize("values", [[], [-1.0], [-1.0, -2.0, -3.0, -4.0]])
def test_a_wrong_number_of_log_probabilities_is_a_problem(monkeypatch, values):
    tops = [{"token_id:3": value} for value in values]
    decoded = {"token_ids": [8, 3, 5], "logprobs": {"token_logprobs": values, "top_logprobs": tops}}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [decoded]})
    with pytest.raises(Problem, match="expected 2 of each"):
        forced.decode(ENDPOINT, [7, 8], [3, 5])
    tops = [{"3": {"logprob": value}, "5": {"logprob": value}} for value in values]
    prefilled = {"prompt_token_ids": [7, 8, 3, 5], "prompt_logprobs": [None, None, *tops]}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [prefilled]})
    with pytest.raises(Problem, match="expected 2 of each"):
        forced.prefill(ENDPOINT, [7, 8, 3, 5], 2)


def test_no_log_probabilities_at_all_is_a_problem(monkeypatch):
    choice = {"token_ids": [8, 3], "prompt_token_ids": [7, 8, 3], "logprobs": None, "prompt_logprobs": None}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [choice]})
    with pytest.raises(Problem, match="of 0 tokens"):
        forced.decode(ENDPOINT, [7, 8], [3])
    with pytest.raises(Problem, match="of 0 tokens"):
        forced.prefill(ENDPOINT, [7, 8, 3], 2)


def test_a_server_that_decodes_wrong_tokens_is_a_problem(monkeypatch):
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [{"token_ids": [9, 3, 5], "logprobs": None}]})
    with pytest.raises(Problem) as problem:
        forced.decode(ENDPOINT, [8, 9], [3, 4])
    assert problem.value.kind == "requests"
    assert "position 2 on: got [5], expected [4]" in problem.value.message
    assert "--logits-processors" in problem.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None])
def test_a_log_probability_that_is_no_number_is_a_problem(monkeypatch, value):
    answer = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"2": {"logprob": value}}]}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [answer]})
    with pytest.raises(Problem, match=f"token 0 is {value}, expected a finite number"):
        forced.prefill(ENDPOINT, [1, 2], 1)


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_log_probability_of_a_top_token_that_is_no_number_is_a_problem(monkeypatch, value):
    top = {"2": {"logprob": -1.0}, "7": {"logprob": value}}
    answer = {"prompt_token_ids": [1, 2], "prompt_logprobs": [None, top]}
    monkeypatch.setattr(forced, "post", lambda *_: {"choices": [answer]})
    with pytest.raises(Problem, match=f"token 0 is {value}, expected a finite number"):
        forced.prefill(ENDPOINT, [1, 2], 1)


def test_score_all_keeps_the_order_salts_its_cache_and_reports_progress(sent):
    texts, progress = [Text(ids=[1, 2, 3, i], start=3) for i in range(20)], []
    scored = forced.score_all(
        ENDPOINT, texts, "decode", concurrency=4, progress=lambda *counts: progress.append(counts)
    )
    assert [text.token_ids for text in scored] == [[i] for i in range(20)]
    assert progress == [(count, 20) for count in range(1, 21)]
    forced.score_all(ENDPOINT, texts, "prefill")
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
        forced.score_all(ENDPOINT, [Text(ids=[1, 2, 3], start=2)] * 1000, "decode", concurrency=2)
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
