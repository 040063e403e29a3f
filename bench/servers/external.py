"""External servers: found by URL, described by their own answers, never started, stopped or changed."""

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

SERVER, REFERENCE = "server", "reference"  # names of entries
KEY_VARIABLE = "VLLM_API_KEY"
URL, HOST = "$URL", "$HOST"  # in a result, which names no host


@dataclass(frozen=True)
class ExternalEntry(Entry):
    """An external server."""

    endpoint: Endpoint


class Card(BaseModel):
    """A model in the answer to GET /v1/models. root: of vLLM, the model folder or its name on Hugging Face."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class Cards(BaseModel):
    data: list[Card]


def base_url(text: str) -> str:
    """The URL without /v1. Raises ValueError unless it is scheme, host, port and path alone."""
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://HOST:PORT")
    if "@" in parts.netloc:
        raise ValueError(f"expected no user and password in a URL; the server's key belongs into {KEY_VARIABLE}")
    if parts.query or parts.fragment:
        raise ValueError("expected nothing after the path")
    if parts.port == 0:
        raise ValueError("port 0")
    path = re.sub(r"/v1$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def resolve(folder: Path, request: Request) -> Run:
    """Ask the servers of a request what they serve, and load model and suite; writes nothing.

    The request's profile selects the bounds of the gates, nothing else. Without a reference server, the server is its
    own reference. Raises Problem("requests") for a server that does not answer, Problem("model") for a model that is
    not on this machine, and what loading profile and suite raises.
    """
    card = _card(request.url, request.model)
    local = _local_model(card, request.model)
    suite, skipped_points = load_suite(request, local)
    judged_as = [profile.load(name) for name in request.profiles]
    if any(loaded.name == REFERENCE for loaded in judged_as):
        raise Problem("profile", f"a profile has the name {REFERENCE} of the reference server", "rename its file")
    suite.check_thresholds([*judged_as, profile.load(suite.greedy.reference)])

    def entry(name: str, url: str, card: Card, thresholds: Thresholds) -> ExternalEntry:
        endpoint = Endpoint(
            url, card.id, local.path, f"the log of the server at {url}", authorization(), card.max_model_len
        )
        description = "an external server"
        return ExternalEntry(name, description, thresholds, folder / name, endpoint)

    thresholds = suite.thresholds_of(judged_as[0]) if judged_as else Thresholds()
    served = entry(judged_as[0].name if judged_as else SERVER, request.url, card, thresholds)
    reference = served
    if request.reference_url:
        card = _card(request.reference_url, request.model)
        reference = entry(REFERENCE, request.reference_url, card, Thresholds())
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
    return digest.of_external(entry.endpoint, run.model, run.machine, run.suite)


def authorization() -> dict[str, str]:
    """The headers of a request, with the key of KEY_VARIABLE where it is set."""
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def hide_hosts(text: str, urls: list[str]) -> str:
    """Replace each URL by URL, and each host, by name and by address, by HOST."""
    for url in urls:
        host = urlsplit(url).hostname
        addresses = set()
        with suppress(OSError):
            addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
        text = text.replace(url, URL)
        for name in sorted({host, *addresses}, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", HOST, text, flags=re.IGNORECASE)
    return text


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
        message = f"{url}/v1/models answers {str(answer)[:200]}, expected a list of models"
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
