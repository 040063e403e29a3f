"""Log-probabilities of given tokens from a running server: through its decode kernel, and through prefill.

Decode is teacher-forced: the server's token forcer (vllm_launch.plugin.forcer) makes it "sample" the reference
tokens one by one, so that each is scored by the decode kernel on the KV cache. Prefill scores all tokens at once.
"""

import math
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Literal

from bench.accuracy.texts import Text
from bench.servers.client import Endpoint, NotOffered, post
from flashinfer_patches.errors import Problem
from flashinfer_patches.strict import Strict
from vllm_launch.profile import Argument, Device

ScoredPath = Literal["decode", "prefill"]
PATHS: tuple[ScoredPath, ...] = ("decode", "prefill")
MISSING = {"decode": "the server lacks our token forcer", "prefill": "the server returns no prompt log-probabilities"}
TOP = 20  # log-probabilities a position, the most that OpenAI's interface and vLLM's default allow
FIRST_V2 = (0, 32)  # vLLM's first release whose GPU runner is V2 with logits processors; before, they bring back V1


class OtherTokens(NotOffered):
    """A server scored other tokens than the given ones."""


class Scored(Strict):
    """Tokens with their raw natural log-probabilities, and the most likely tokens of each position with theirs.

    top: at each position at least the TOP most likely and the token itself, id -> log-probability.
    """

    token_ids: list[int]
    logprobs: list[float]
    top: list[dict[int, float]]


def arguments(device: Device, vllm_version: str) -> dict[str, Argument]:
    """vLLM's arguments that a server needs for `decode`."""
    release = tuple(int(part) for part in vllm_version.split(".")[:2])
    module = "forcer_v2" if device == "gpu" and release >= FIRST_V2 else "forcer"
    return {"logits-processors": f"vllm_launch.plugin.{module}:ForceTokens", "max-logprobs": TOP}


def decode(
    endpoint: Endpoint,
    prompt_ids: list[int],
    reference_ids: list[int],
    *,
    top: int = TOP,
    cache_salt: str | None = None,
) -> Scored:
    """Score reference_ids after prompt_ids (at least two), each in a decode step of its own.

    The server's first token comes from prefill, so the prompt's last token is forced first and its score dropped.
    cache_salt: only requests of the same salt share cached prefixes. Raises Problem("requests"), also if the server
    decoded other tokens.
    """
    if len(prompt_ids) < 2 or not reference_ids:
        raise ValueError(f"expected 2 prompt tokens and 1 to score, got {len(prompt_ids)} and {len(reference_ids)}")
    forced = [prompt_ids[-1], *reference_ids]
    body = {
        "prompt": prompt_ids[:-1],
        "max_tokens": len(forced),
        "ignore_eos": True,
        "logprobs": top,
        "return_tokens_as_token_ids": True,
        "vllm_xargs": {"force_ids": forced},
        "logit_bias": {str(max(forced)): 0},  # the forcer asks for it, see its `validate`
    }
    choice = _choice(endpoint, body, cache_salt)
    _check_same(choice.get("token_ids") or [], forced)
    logprobs = choice.get("logprobs") or {"token_logprobs": [], "top_logprobs": []}
    tops = [
        {int(name.removeprefix("token_id:")): value for name, value in top.items()} for top in logprobs["top_logprobs"]
    ]
    return _scored(reference_ids, logprobs["token_logprobs"][1:], tops[1:])


def prefill(endpoint: Endpoint, ids: list[int], start: int, *, top: int = TOP, cache_salt: str | None = None) -> Scored:
    """Score ids[start:] (start at least 1) by one pass over all ids. Raises Problem("requests").

    One token is sampled besides, so ids must be shorter than the server's context.
    """
    if not 1 <= start < len(ids):
        raise ValueError(f"expected 1 <= start < {len(ids)} tokens, got {start}")
    choice = _choice(endpoint, {"prompt": ids, "max_tokens": 1, "prompt_logprobs": top}, cache_salt)
    _check_same(choice.get("prompt_token_ids") or [], ids)
    positions = (choice.get("prompt_logprobs") or [])[start:]
    tops = [{int(token): entry["logprob"] for token, entry in position.items()} for position in positions]
    values = [top.get(token) for top, token in zip(tops, ids[start:], strict=False)]
    return _scored(ids[start:], values, tops)


def missing_paths(endpoint: Endpoint, ids: list[int]) -> dict[ScoredPath, str]:
    """Try a short request for each path: those that the server does not offer, with the reason.

    Raises Problem("requests") for a failure that may pass, such as HTTP 429.
    ids: at least 6 tokens of a text. A server without our token forcer ignores `force_ids` and decodes as usual.
    """
    requests = {
        "decode": lambda: decode(endpoint, ids[:2], ids[:1:-1]),  # reversed text: never what greedy decoding returns
        "prefill": lambda: prefill(endpoint, ids, 1),
    }
    missing = {}
    for path, request in requests.items():
        try:
            request()
        except OtherTokens:
            missing[path] = MISSING[path]
        except NotOffered as problem:
            missing[path] = f"{MISSING[path]}: {problem.message}"
    return missing


def score_all(
    endpoint: Endpoint,
    texts: list[Text],
    path: ScoredPath,
    *,
    concurrency: int = 16,
    progress: Callable[[int, int], None] = lambda count, total: None,
) -> list[Scored]:
    """Score every text, `concurrency` requests at a time; no cached prefix of an earlier call is used.

    progress: called with the number of texts scored so far, and of all. Raises Problem("requests") at the first
    failure, once the requests already under way have ended; no further ones are sent.
    """
    salt, failed = secrets.token_hex(8), threading.Event()

    def score(text: Text) -> Scored | None:
        """None: not sent, since another request has failed."""
        if failed.is_set():
            return None
        try:
            return _score(endpoint, path, salt, text)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(score, text) for text in texts]
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                if future.result() is not None:
                    progress(count, len(texts))
        except BaseException:  # Ctrl-C too
            failed.set()
            raise
    return [future.result() for future in futures]


def _score(endpoint: Endpoint, path: ScoredPath, salt: str, text: Text) -> Scored:
    if path == "decode":
        return decode(endpoint, text.ids[: text.start], text.ids[text.start :], cache_salt=salt)
    return prefill(endpoint, text.ids, text.start, cache_salt=salt)


def _choice(endpoint: Endpoint, body: dict, cache_salt: str | None) -> dict:
    common = {"temperature": 0, "return_token_ids": True}
    salt = {"cache_salt": cache_salt} if cache_salt else {}
    return post(endpoint, common | body | salt)["choices"][0]


def _check_same(served: list[int], expected: list[int]) -> None:
    if served == expected:
        return
    pairs = enumerate(zip(served, expected, strict=False))
    first = next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(served), len(expected)))
    raise OtherTokens(
        "requests",
        f"the server took {len(served)} tokens, expected {len(expected)}; they differ from position {first} on: "
        f"got {served[first : first + 3]}, expected {expected[first : first + 3]}",
        "start the server with the token forcer: --logits-processors, as bench.accuracy.forced.arguments has it",
    )


def _scored(token_ids: list[int], logprobs: list[float | None], top: list[dict[int, float]]) -> Scored:
    if not len(token_ids) == len(logprobs) == len(top):
        raise NotOffered(
            "requests",
            f"the server returned log-probabilities of {len(logprobs)} tokens and the top ones of {len(top)} positions,"
            f" expected {len(token_ids)} of each",
            "look into the server's log; is this vLLM release supported?",
        )
    for index, (given_value, likely) in enumerate(zip(logprobs, top, strict=True)):
        for value in (given_value, *likely.values()):
            if value is None or not math.isfinite(value):
                raise Problem(
                    "requests",
                    f"a log-probability at token {index} is {value}, expected a finite number",
                    "the model's output is broken on this server: try another attention backend or KV cache dtype",
                )
    return Scored(token_ids=token_ids, logprobs=logprobs, top=top)
