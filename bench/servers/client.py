"""Completions over HTTP, and the greedy gate on them."""

import math
import time

import requests
from pydantic import BaseModel, ConfigDict

from bench.accuracy.verdicts import GreedyMatch, greedy_passes
from flashinfer_patches.errors import Problem
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
    """`tokens` tokens after `prompt` at temperature 0, end of text ignored. Raises Problem("requests").

    An answer may be shorter than asked: `match` fails it.
    """
    body = {
        "model": server.plan.model.name,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 2,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # in log-probabilities: the texts of two tokens can be the same
    }
    choice = post(server, body)["choices"][0]
    tops = (choice["logprobs"] or {}).get("top_logprobs") or []
    if not all(value is not None and math.isfinite(value) for top in tops for value in top.values()):
        raise Problem(
            "requests",
            f"a log-probability in the greedy answer to {prompt!r} is no finite number",
            "the model's output is broken on this server: try another attention backend or KV cache dtype",
        )
    return Answer(
        prompt=prompt, text=choice["text"], token_ids=choice["token_ids"], margins=[_margin(top) for top in tops]
    )


def _margin(top: dict[str, float]) -> float:
    """From the best to the second-best log-probability; 0 where there are no two."""
    best = sorted(top.values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 0.0


def first_token_s(server: Server, prompt: str) -> float:
    """Seconds to one token, of the first request that the server sees."""
    started = time.monotonic()
    post(server, {"model": server.plan.model.name, "prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - started


def match(answer: Answer, reference: Answer, reference_profile: str, gate: GreedyGate) -> GreedyMatch:
    """Position by position: passed if more than min_match are equal and the answer is no loop of few tokens.

    A position that one of the two lacks is unequal, and an answer with fewer than gate.tokens has failed.
    """
    equal = sum(a == b for a, b in zip(answer.token_ids, reference.token_ids, strict=False))
    missing = max(0, gate.tokens - min(len(answer.token_ids), len(reference.token_ids)))
    distinct = min(len(set(answer.token_ids)), len(set(reference.token_ids)))
    return GreedyMatch(
        prompt=answer.prompt,
        reference=reference_profile,
        text=answer.text,
        reference_text=reference.text,
        matched=equal,
        tokens=gate.tokens,
        missing=missing,
        distinct=distinct,
        margin=min(reference.margins, default=0.0),
        min_match=gate.min_match,
        min_distinct=gate.min_distinct,
        passed=greedy_passes(equal, gate.tokens, distinct, gate.min_match, gate.min_distinct, missing),
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
