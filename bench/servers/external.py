"""External servers: found by URL, described by their own answers, never started, stopped or changed."""

import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from bench.record import run_folder
from bench.record.run_folder import Request
from bench.servers import client, digest
from bench.servers.client import Endpoint
from bench.servers.run import Entry, Run, load_suite
from bench.suite import Thresholds
from flashinfer_patches.errors import Problem
from vllm_launch import machine, model, profile
from vllm_launch.model import Model
from vllm_launch.profile import Profile

SERVER, REFERENCE = "server", "reference"  # names of entries
DESCRIPTION = "an external server"
KEY_VARIABLE = "VLLM_API_KEY"
URL, HOST = "$URL", "$HOST"  # in a result, which names no host
REQUEST_PATHS = re.compile(r"(/v1)?/(chat/completions|completions|models)$")
# vLLM's settings of the KV cache, as labels in /metrics, and the figures among them, which differ from start to start.
CACHE_SETTINGS = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
FIGURES = ("engine", "num_gpu_blocks", "num_cpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency")


@dataclass(frozen=True)
class ExternalEntry(Entry):
    """An external server. settings: those that it states, by name. root: of its model, see Card."""

    endpoint: Endpoint
    settings: dict[str, str]
    root: str | None


class Card(BaseModel):
    """A model in the answer to GET /v1/models. root: of vLLM, the model folder or its name on Hugging Face."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class Cards(BaseModel):
    data: list[Card]


def base_url(text: str) -> str:
    """The URL without /v1. Raises ValueError unless it is scheme, host, port and path alone."""
    text = text.strip()
    if re.search(r"\s", text):
        raise ValueError("a space in the URL")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://HOST:PORT")
    if "@" in parts.netloc:
        raise ValueError(f"expected no user and password in a URL; the server's key belongs into {KEY_VARIABLE}")
    if parts.query or parts.fragment:
        raise ValueError("expected nothing after the path")
    if parts.port == 0:
        raise ValueError("port 0")
    path = re.sub(r"/v1$", "", parts.path.rstrip("/"))
    if request_path := REQUEST_PATHS.search(path):
        raise ValueError(f"expected the server's base URL, without {request_path[0]}")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def resolve(folder: Path, request: Request) -> Run:
    """Ask the servers of a request what they serve, and load model and suite; writes nothing.

    The request's profile selects the bounds of the gates, nothing else. Without a reference server, the server is its
    own reference. Raises Problem("requests") for a malformed key or an unanswered request, Problem("model") for
    a model that is not on this machine, and what loading profile and suite raises.
    """
    card = _card(request.url, request.model)
    local = _local_model(card, request.model)
    suite, skipped_points = load_suite(request, local)
    judged_as = [profile.load(name) for name in request.profiles]
    suite.check_thresholds([*judged_as, profile.load(suite.greedy.reference)])

    def entry(name: str, url: str, card: Card, judged_as: list[Profile]) -> ExternalEntry:
        endpoint = Endpoint(
            url, card.id, local.path, f"the log of the server at {url}", authorization(), card.max_model_len
        )
        description = DESCRIPTION + "".join(f", judged by the bounds of {profile.name}" for profile in judged_as)
        thresholds = suite.thresholds_of(judged_as[0]) if judged_as else Thresholds()
        return ExternalEntry(name, description, thresholds, folder / name, endpoint, _settings(url), card.root)

    served = entry(SERVER, request.url, card, judged_as)
    reference = served
    if request.reference_url:
        reference = entry(REFERENCE, request.reference_url, _card(request.reference_url, request.model), [])
    return Run(
        folder=folder,
        request=request,
        suite=suite,
        model=local,
        machine=machine.detect("cpu"),
        entries=[served],
        reference=reference,
        skipped_points=skipped_points,
    )


def problems(run: Run) -> list[Problem]:
    """Everything that keeps a run from resuming the steps in its folder. Raises Problem for another run's folder."""
    run_folder.check(run.folder, run.request)
    differences = []
    for entry in {entry.name: entry for entry in (*run.entries, run.reference)}.values():
        try:
            digest.check(entry.folder, digest_of(run, entry))
        except Problem as problem:
            differences.append(problem)
    return differences


def digest_of(run: Run, entry: ExternalEntry) -> dict[str, str]:
    return digest.of_external(entry.endpoint, entry.settings, run.model, run.machine, run.suite)


def serve_same_model(first: ExternalEntry, second: ExternalEntry) -> bool:
    """Whether two servers give their models the same name or the same root."""
    return first.endpoint.model == second.endpoint.model or (first.root is not None and first.root == second.root)


def authorization() -> dict[str, str]:
    """The headers of a request, with the key of KEY_VARIABLE where it is set. Raises Problem for a malformed one."""
    key = os.environ.get(KEY_VARIABLE)
    if key and not re.fullmatch(r"[!-~]+", key):
        message = f"{KEY_VARIABLE} holds a space, a line break or a character beyond ASCII"
        raise Problem("requests", message, f"set {KEY_VARIABLE} to the key alone")
    return {"Authorization": f"Bearer {key}"} if key else {}


def hide_hosts(text: str, urls: list[str]) -> str:
    """Replace each URL by URL, and each host, by name and by address, with its domain and port, by HOST."""
    for url in sorted(urls, key=len, reverse=True):
        text = re.sub(rf"{re.escape(url)}(?![\w-])", URL, text)
    for host in {urlsplit(url).hostname for url in urls}:
        addresses = set()
        with suppress(OSError):
            addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
        for name in sorted({host, *addresses}, key=len, reverse=True):
            whole_name = rf"(?<![\w.-])\[?{re.escape(name)}(?:\.[a-z][\w-]*)*(?![\w-])\]?(?::\d+)?"
            text = re.sub(whole_name, HOST, text, flags=re.IGNORECASE)
    return text


def _settings(url: str) -> dict[str, str]:
    """The settings that a server states, by name: its version, and its KV cache. Empty where it is not vLLM."""
    headers, remedy = authorization(), f"see the log of the server at {url}"
    settings = {}
    with suppress(ValueError, TypeError, KeyError):
        settings["version"] = str(json.loads(client.get_optional(f"{url}/version", headers, remedy))["version"])
    cache = CACHE_SETTINGS.search(client.get_optional(f"{url}/metrics", headers, remedy) or "")
    labels = LABEL.findall(cache[1]) if cache else []
    return settings | {f"KV cache {name}": value for name, value in labels if name not in FIGURES}


def _card(url: str, name: str | None) -> Card:
    """The model that a server serves; of several the one whose id, path or repository is `name`."""
    cards = _cards(url, authorization())
    names = {name, Path(name).name, str(Path(name).expanduser().resolve())} if name else set()
    named = [card for card in cards if names & {card.id, card.root}]
    models = {card.root or card.id: card for card in reversed(named or cards)}  # names of one model share its root
    if len(models) == 1:
        return next(iter(models.values()))
    listed = ", ".join(card.id for card in cards) or "none"
    raise Problem("model", f"{url} serves {len(models)} models: {listed}", "name the one to measure: --model")


def _cards(url: str, headers: Mapping[str, str]) -> list[Card]:
    remedy = f"check that a server with OpenAI's API runs at {url}, and that {KEY_VARIABLE} holds its key"
    answer = client.get(f"{url}/v1/models", headers, remedy)
    try:
        return Cards.model_validate(answer).data
    except ValidationError as error:
        text = client.without_key(str(answer), headers)[:200]
        message = f"{url}/v1/models answers {text}, expected a list of models"
        raise Problem("requests", message, remedy) from error


def _local_model(card: Card, name: str | None) -> Model:
    """The local model, for its tokenizer and config: `name`, or else the one that the server names."""
    if name:
        return model.find(name, need_weights=False)
    for candidate in (card.root, card.id):
        with suppress(Problem):
            if candidate:
                return model.find(candidate, need_weights=False)
    raise Problem(
        "model",
        f"the server serves {card.id}, which is neither a model folder here nor in the local Hugging Face cache",
        "name the model on this machine, for its tokenizer: --model FOLDER or owner/name",
    )
