"""Completions over HTTP."""

import time

import requests

from flashinfer_patches.errors import Problem
from vllm_launch.server import Server, authorization

TIMEOUT_S = 600


def post(server: Server, body: dict) -> dict:
    """POST `body` to /v1/completions and return the answer. Raises Problem("requests") for anything but HTTP 200."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            response = session.post(
                f"{server.plan.url}/v1/completions", json=body, headers=authorization(server.plan), timeout=TIMEOUT_S
            )
        except requests.RequestException as error:
            raise Problem("requests", f"no answer from the server: {error}", f"see {server.log}") from error
    if response.status_code != 200:
        raise Problem("requests", f"HTTP {response.status_code}: {response.text[:300]}", f"see {server.log}")
    return response.json()


def first_token_s(server: Server, prompt: str) -> float:
    """Seconds to one token, of the first request to the server."""
    started = time.monotonic()
    post(server, {"model": server.plan.model.name, "prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - started
