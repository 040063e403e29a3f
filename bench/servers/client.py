"""Completions over HTTP, from any server with OpenAI's interface."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import requests

from flashinfer_patches.errors import Problem
from vllm_launch.server import Server, authorization

TIMEOUT_S = 600


@dataclass(frozen=True)
class Endpoint:
    """Where a server answers, whoever runs it.

    url: without /v1. model: the name under which it serves the model. tokenizer: the model's folder. log: where to look
    after a failure. headers: of each request; may hold the key.
    """

    url: str
    model: str
    tokenizer: str
    log: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def endpoint_of(server: Server) -> Endpoint:
    """The endpoint of a server that we run."""
    plan = server.plan
    return Endpoint(plan.url, plan.model.name, plan.model.path, str(server.log), authorization(plan))


def post(endpoint: Endpoint, body: dict, timeout_s: float = TIMEOUT_S) -> dict:
    """Complete `body` (without `model`) at /v1/completions. Raises Problem("requests") for anything but HTTP 200."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            response = session.post(
                f"{endpoint.url}/v1/completions",
                json={"model": endpoint.model} | body,
                headers=endpoint.headers,
                timeout=timeout_s,
            )
        except requests.RequestException as error:
            raise Problem("requests", f"no answer from the server: {error}", f"see {endpoint.log}") from error
    if response.status_code != 200:
        raise Problem("requests", f"HTTP {response.status_code}: {response.text[:300]}", f"see {endpoint.log}")
    return response.json()


def first_token_s(endpoint: Endpoint, prompt: str) -> float:
    """Seconds to one token, of the first request to the server."""
    started = time.monotonic()
    post(endpoint, {"prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - started
