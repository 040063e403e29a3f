"""An exposed server requires its key on every route but /health."""

import asyncio
import importlib

import pytest

from vllm_launch import plan, profile
from vllm_launch.plugin.key_gate import RequireKey

KEY = "a key with spaces"
RIGHT = (b"Authorization", f"Bearer {KEY}".encode())


def answer(scope):
    """Return what the gate sends to a client, and whether the request reached the application."""
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    async def send(message):
        sent.append(message)

    asyncio.run(RequireKey(app)(scope, None, send))
    return sent, bool(reached)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/metrics", "/tokenize", "/health/", "/"])
@pytest.mark.parametrize(
    "headers",
    [[], [(b"authorization", b"Bearer ")], [(b"authorization", KEY.encode())], [RIGHT, (b"authorization", b"Bearer x")],
     [(b"authorization", RIGHT[1] + b"x")], [(b"x-authorization", RIGHT[1])]],
)  # fmt: skip
def test_no_route_answers_without_the_key(path, headers):
    for method in ("POST", "GET", "OPTIONS", "HEAD"):  # /metrics is served for any method
        sent, reached = answer({"type": "http", "method": method, "path": path, "headers": headers})
        assert sent[0]["status"] == 401 and not reached and KEY not in str(sent)
    sent, reached = answer({"type": "websocket", "path": path, "headers": headers})
    assert sent == [{"type": "websocket.close", "code": 1008}] and not reached


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/metrics"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_key_opens_every_route(path, kind):
    for name, value in (RIGHT, (b"authorization", b"bearer " + KEY.encode())):
        assert answer({"type": kind, "path": path, "headers": [(name, value)]}) == ([], True)


def test_health_is_open():
    assert answer({"type": "http", "method": "GET", "path": "/health", "headers": []}) == ([], True)


@pytest.mark.parametrize("empty", [None, "", " "])
def test_without_a_key_the_server_does_not_start(monkeypatch, empty):
    monkeypatch.delenv("VLLM_API_KEY")
    if empty is not None:
        monkeypatch.setenv("VLLM_API_KEY", empty)
    with pytest.raises(RuntimeError):
        RequireKey(None)


def test_an_exposed_server_has_the_gate_and_no_other_has(tmp_path):
    module, _, name = plan.KEY_GATE.rpartition(".")
    assert getattr(importlib.import_module(module), name) is RequireKey
    for host, gated in (("0.0.0.0", True), ("127.0.0.1", False), ("::1", False)):
        planned = plan.make(profile.load("fp8"), port=1, host=host, cache_root=tmp_path)
        assert (plan.KEY_GATE in planned.command) is gated
