"""ASGI middleware that requires the key on every route of an exposed server, except health checks.

vLLM's own check covers some prefixes: /invocations, /tokenize, /metrics and others answer without a key.
"""

import hashlib
import os
import secrets

OPEN = ("/health", "/ping")


class RequireKey:
    """Answer 401 to a request without `Authorization: Bearer <VLLM_API_KEY>`, unless its path is in OPEN.

    Raises RuntimeError at start if VLLM_API_KEY is not set.
    """

    def __init__(self, app):
        key = os.environ.get("VLLM_API_KEY", "")
        if not key.strip():
            raise RuntimeError("the server is open to others and VLLM_API_KEY is not set")
        self.app, self.expected = app, _digest(key.encode())

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            return await self.app(scope, receive, send)
        headers = [value.partition(b" ") for name, value in scope["headers"] if name.lower() == b"authorization"]
        tokens = [_digest(token) for scheme, _, token in headers if scheme.lower() == b"bearer"]
        if len(tokens) == 1 and secrets.compare_digest(tokens[0], self.expected):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        body = b'{"error": "Unauthorized: send the header Authorization: Bearer <key>"}'
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
