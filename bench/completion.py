"""Completions over HTTP, and the greedy gate on them."""

import math
import time

import requests
from pydantic import BaseModel, ConfigDict

from bench.verdicts import GreedyMatch, greedy_passes
from vllm_launch.errors import Problem
from vllm_launch.profile import GreedyGate
from vllm_launch.server import Server, authorization

TIMEOUT_S = 600


class Answer(BaseModel):
    """A greedy completion: token ids, and for each the gap between best and second-best log-probability (nats)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: str
    text: str
    token_ids: list[int]
    margins: list[float]


def greedy(server: Server, prompt: str, tokens: int) -> Answer:
    """`tokens` tokens after `prompt` at temperature 0, end of text ignored. Raises Problem("requests")."""
    body = {
        "model": server.plan.model.name,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 2,
        "return_token_ids": True,
    }
    choice = post(server, body)["choices"][0]
    tops = [list(top.values()) for top in choice["logprobs"]["top_logprobs"]]
    if not all(value is not None and math.isfinite(value) for top in tops for value in top):
        raise Problem(
            "requests",
            f"a log-probability in the greedy answer to {prompt!r} is no finite number",
            "the model's output is broken on this server: try another attention backend or KV cache dtype",
        )
    best_two = [sorted(top, reverse=True)[:2] for top in tops]
    return Answer(
        prompt=prompt,
        text=choice["text"],
        token_ids=choice["token_ids"],
        margins=[best - second for best, second in best_two],
    )


def first_token_s(server: Server, prompt: str) -> float:
    """Seconds to one token, of the first request that the server sees."""
    started = time.monotonic()
    post(server, {"model": server.plan.model.name, "prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - started


def match(answer: Answer, reference: Answer, reference_profile: str, gate: GreedyGate) -> GreedyMatch:
    """Position by position: passed if more than min_match are equal and the answer is no loop of few tokens."""
    equal = sum(a == b for a, b in zip(answer.token_ids, reference.token_ids, strict=True))
    distinct = min(len(set(answer.token_ids)), len(set(reference.token_ids)))
    return GreedyMatch(
        prompt=answer.prompt,
        reference=reference_profile,
        text=answer.text,
        reference_text=reference.text,
        matched=equal,
        tokens=gate.tokens,
        distinct=distinct,
        margin=min(reference.margins),
        min_match=gate.min_match,
        min_distinct=gate.min_distinct,
        passed=greedy_passes(equal, gate.tokens, distinct, gate.min_match, gate.min_distinct),
    )


def post(server: Server, body: dict) -> dict:
    """The answer of /v1/completions to `body`. Raises Problem("requests") for anything but HTTP 200."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.post(
                f"{server.plan.url}/v1/completions", json=body, headers=authorization(server.plan), timeout=TIMEOUT_S
            )
        except requests.RequestException as error:
            raise Problem("requests", f"no answer from the server: {error}", f"see {server.log}") from error
    if answer.status_code != 200:
        raise Problem("requests", f"HTTP {answer.status_code}: {answer.text[:300]}", f"see {server.log}")
    return answer.json()
