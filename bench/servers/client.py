"""Completions over HTTP, from any server with OpenAI's API."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from flashinfer_patches import files
from flashinfer_patches.errors import Problem
from vllm_launch import redaction
from vllm_launch.server import Server, authorization

TIMEOUT_S = 600
SHORT_TIMEOUT_S = 20  # of requests that compute nothing
NOT_OFFERED = (400, 404, 405, 422, 501)  # HTTP statuses of a server that lacks the path or an option
TOO_MANY_REQUESTS = 429


class Unanswered(Problem):
    """No HTTP response: connection refused or dropped, or timed out."""


class NotOffered(Problem):
    """The server lacks the path, an option or a field of the response; no failure that may pass."""


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
    """POST `body`, with the model's name, to /v1/completions. Raises Unanswered, NotOffered or Problem("requests")."""
    body, remedy = {"model": endpoint.model} | body, f"see {endpoint.log}"
    answer = _answer("POST", f"{endpoint.url}/v1/completions", endpoint.headers, timeout_s, remedy, body)
    if not (isinstance(answer, dict) and answer.get("choices")):
        text = without_key(str(answer), endpoint.headers)[:300]
        raise NotOffered("requests", f"expected a completion, got {text}", remedy)
    return answer


def get(url: str, headers: Mapping[str, str], remedy: str) -> Any:
    """GET JSON. Raises Unanswered, NotOffered or Problem("requests"), with this remedy."""
    return _answer("GET", url, headers, SHORT_TIMEOUT_S, remedy)


def get_optional(url: str, headers: Mapping[str, str], remedy: str) -> str | None:
    """GET the text of a page that a server may lack or protect: None then. Raises as get() for HTTP 429 and 5xx."""
    response = _response("GET", url, headers, SHORT_TIMEOUT_S, remedy)
    if response.status_code == TOO_MANY_REQUESTS or response.status_code >= 500:
        raise _refused(response, headers, remedy)
    return response.text if response.status_code == 200 else None


def without_key(text: str, headers: Mapping[str, str]) -> str:
    """The text with the values of `headers` masked, also as JSON escapes them; a server may repeat them."""
    for value in headers.values():
        key = value.removeprefix("Bearer ")
        for form in {key, json.dumps(key)[1:-1]}:
            text = text.replace(form, redaction.MASK)
    return text


def mask_file(path: Path, headers: Mapping[str, str]) -> None:
    """Mask the values of `headers` in a text file, which may be absent."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if (masked := without_key(text, headers)) != text:
        files.replace(path, masked.encode())


def _answer(method: str, url: str, headers: Mapping[str, str], timeout_s: float, remedy: str, body: dict | None = None):
    """The JSON of an HTTP 200."""
    response = _response(method, url, headers, timeout_s, remedy, body)
    if response.status_code != 200:
        raise _refused(response, headers, remedy)
    try:
        return response.json()
    except ValueError as error:
        text = without_key(response.text, headers)[:300]
        raise Problem("requests", f"expected JSON, got {text!r}", remedy) from error


def _response(
    method: str, url: str, headers: Mapping[str, str], timeout_s: float, remedy: str, body: dict | None = None
) -> requests.Response:
    """Send a request. Follows no redirect, and takes neither proxy nor password from the environment."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.request(method, url, json=body, headers=headers, timeout=timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            raise Unanswered("requests", f"no answer from the server: {_cause(error)}", remedy) from error


def _refused(response: requests.Response, headers: Mapping[str, str], remedy: str) -> Problem:
    kind = NotOffered if response.status_code in NOT_OFFERED else Problem
    text = without_key(response.text, headers)[:300]
    return kind("requests", f"HTTP {response.status_code}: {text}", remedy)


def _cause(error: BaseException) -> str:
    """The innermost cause, such as "Connection refused"; requests and urllib3 wrap it in long texts."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def first_token_s(endpoint: Endpoint, prompt: str) -> float:
    """Seconds to one token, of the first request to the server."""
    started = time.monotonic()
    post(endpoint, {"prompt": prompt, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - started
