"""Completions over HTTP, from any server with OpenAI's API."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from flashinfer_patches.errors import Problem
from vllm_launch.server import Server, authorization

TIMEOUT_S = 600
SHORT_TIMEOUT_S = 20  # of requests that compute nothing


class Unanswered(Problem):
    """No HTTP response: connection refused or dropped, or timed out."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server answers, whoever runs it.

    url: without /v1. model: the name that requests give. tokenizer: the model's folder. log: where to look after a
    failure. headers: of each request; may hold the key. context: the most tokens of a request; None if not known.
    """

    url: str
    model: str
    tokenizer: str
    log: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    context: int | None = None


def endpoint_of(server: Server) -> Endpoint:
    """The endpoint of a server that we run."""
    plan = server.plan
    return Endpoint(plan.url, plan.model.name, plan.model.path, str(server.log), authorization(plan))


def post(endpoint: Endpoint, body: dict, timeout_s: float = TIMEOUT_S) -> dict:
    """POST `body`, with the model's name, to /v1/completions. Raises Unanswered, or Problem("requests")."""
    body, remedy = {"model": endpoint.model} | body, f"see {endpoint.log}"
    answer = _answer("POST", f"{endpoint.url}/v1/completions", endpoint.headers, timeout_s, remedy, body)
    if not (isinstance(answer, dict) and answer.get("choices")):
        raise Problem("requests", f"expected a completion, got {str(answer)[:300]}", remedy)
    return answer


def get(url: str, headers: Mapping[str, str], remedy: str) -> Any:
    """GET JSON. Raises Unanswered, or Problem("requests"), with this remedy."""
    return _answer("GET", url, headers, SHORT_TIMEOUT_S, remedy)


def _answer(method: str, url: str, headers: Mapping[str, str], timeout_s: float, remedy: str, body: dict | None = None):
    """The JSON of an HTTP 200. Follows no redirect, and takes neither proxy nor password from the environment."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            response = session.request(
                method, url, json=body, headers=headers, timeout=timeout_s, allow_redirects=False
            )
        except requests.RequestException as error:
            raise Unanswered("requests", f"no answer from the server: {error}", remedy) from error
    if response.status_code != 200:
        raise Problem("requests", f"HTTP {response.status_code}: {response.text[:300]}", remedy)
    try:
        return response.json()
    except ValueError as error:
        raise Problem("requests", f"expected JSON, got {response.text[:300]!r}", remedy) from error


def first_token_s(endpoint: Endpoint, prompt: str) -> float:
    """Seconds to one token, of the first request to the server."""
    started = time.monotonic()
    post(endpoint, {"prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - started
