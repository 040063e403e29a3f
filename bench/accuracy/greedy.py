"""Greedy answers of a server, and the gate on them: token by token against the reference profile's."""

import math

from bench.accuracy.texts import tokenize
from bench.accuracy.verdicts import GreedyMatch, greedy_passes
from bench.servers.client import Endpoint, NotOffered, post
from bench.suite import Greedy
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict


class Answer(Strict):
    """A greedy completion: token ids, and for each the gap between best and second-best log-probability (nats)."""

    prompt: str
    text: str
    token_ids: list[int]
    margins: list[float]


def answer(endpoint: Endpoint, prompt: str, tokens: int) -> Answer:
    """`tokens` tokens after `prompt` at temperature 0, end of text ignored. Raises NotOffered or Problem("requests").

    An answer may be shorter than requested: `match` fails it.
    """
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 2,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # in log-probabilities: the texts of two tokens can be the same
    }
    choice = post(endpoint, body)["choices"][0]
    if not choice.get("token_ids"):
        message = f"the greedy answer to {prompt!r} has no token ids"
        raise NotOffered("requests", message, "use a server that answers to return_token_ids, as vLLM does")
    tops = (choice.get("logprobs") or {}).get("top_logprobs") or []
    if not all(value is not None and math.isfinite(value) for top in tops for value in top.values()):
        raise Problem(
            "requests",
            f"a log-probability in the greedy answer to {prompt!r} is no finite number",
            "the model's output is broken on this server: try another attention backend or KV cache dtype",
        )
    margins = [_margin(top) for top in tops]
    return Answer(prompt=prompt, text=choice["text"], token_ids=choice["token_ids"], margins=margins)


def not_offered(endpoint: Endpoint, prompt: str) -> str | None:
    """Why a server's greedy answers cannot be compared; None if they can.

    Raises Problem("requests") for a failure that may pass, such as HTTP 429, and Problem("model") where the server and
    the local tokenizer split `prompt` differently.
    """
    try:
        _check_tokenizer(endpoint, prompt)
        answer(endpoint, prompt, tokens=1)
    except NotOffered as problem:
        return problem.message
    return None


def _check_tokenizer(endpoint: Endpoint, prompt: str) -> None:
    """Compare the server's prompt tokens with the local tokenizer's; the server may add a prefix, such as BOS."""
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    served = post(endpoint, body)["choices"][0].get("prompt_token_ids")
    expected = tokenize(endpoint.tokenizer, prompt)
    if served and served[-len(expected) :] != expected:
        raise Problem(
            "model",
            f"the server at {endpoint.url} reads {prompt!r} as tokens {served[:8]}, the tokenizer of the local model as"
            f" {expected[:8]}",
            "name the served model: --model; the reference must serve the same",
        )


def matching(candidate: Answer, reference: Answer) -> int:
    """How many tokens are equal, position by position."""
    pairs = zip(candidate.token_ids, reference.token_ids, strict=False)
    return sum(ours == theirs for ours, theirs in pairs)


def match(candidate: Answer, reference: Answer, reference_profile: str, gate: Greedy) -> GreedyMatch:
    """Compare position by position: passed if more than min_match are equal and the answer is no loop of few tokens.

    A position that one of the two lacks is unequal; an answer shorter than gate.tokens fails.
    """
    matched = matching(candidate, reference)
    missing = max(0, gate.tokens - min(len(candidate.token_ids), len(reference.token_ids)))
    distinct = min(len(set(candidate.token_ids)), len(set(reference.token_ids)))
    return GreedyMatch(
        prompt=candidate.prompt,
        reference=reference_profile,
        text=candidate.text,
        reference_text=reference.text,
        matched=matched,
        tokens=gate.tokens,
        missing=missing,
        distinct=distinct,
        margin=min(reference.margins, default=0.0),
        min_match=gate.min_match,
        min_distinct=gate.min_distinct,
        passed=greedy_passes(matched, gate.tokens, distinct, gate.min_match, gate.min_distinct, missing),
    )


def _margin(top: dict[str, float]) -> float:
    """From the best to the second-best log-probability; 0 where there are no two."""
    best = sorted(top.values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 0.0
