"""A stub of an external server: answers completions as vLLM does; what the bench needs can be switched off."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.accuracy.texts import tokenize
from vllm_launch.model import EMBEDDED

CARD = {"id": "tiny", "object": "model", "root": str(EMBEDDED), "max_model_len": 4096}


class StubServer(ThreadingHTTPServer):
    """cards: the models that it serves. forcer, prefill, token_ids: what it offers. first: its first greedy token.

    prefix: tokens before each text prompt. key: that requests need. status, error_body: of each completion, which may
    name its authorization. log_p: of all tokens. pages: the text of other paths, such as /metrics. tokenize: its
    tokenizer. calls: the path, Authorization and body of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cards, self.models_body, self.calls = [CARD], None, []
        self.forcer, self.prefill, self.token_ids = False, True, True
        self.tokenize = partial(tokenize, EMBEDDED)
        self.first, self.prefix, self.key, self.status, self.log_p = 100, [], None, 200, -1.0
        self.error_body, self.pages = "no", {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.calls]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.record(None)
        if self.path != "/v1/models":
            page = self.server.pages.get(self.path)
            return self.respond(404 if page is None else 200, (page or "").encode())
        body = self.server.models_body or json.dumps({"object": "list", "data": self.server.cards})
        self.respond(401 if self.is_refused() else 200, body.encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.record(body)
        if self.is_refused():
            return self.respond(401, b"")
        if "prompt_logprobs" in body and not self.server.prefill:
            return self.respond(400, b'{"error": "prompt_logprobs are not supported"}')
        if self.server.status != 200:
            error_body = self.server.error_body.format(authorization=self.headers.get("Authorization"))
            return self.respond(self.server.status, error_body.encode())
        self.respond(200, json.dumps({"choices": [self.choice(body)]}).encode())

    def choice(self, body):
        prompt, log_p = body["prompt"], self.server.log_p
        prompt_ids = [*self.server.prefix, *self.server.tokenize(prompt)] if isinstance(prompt, str) else prompt
        ids = [self.server.first + index for index in range(body["max_tokens"])]
        if self.server.forcer and "vllm_xargs" in body:
            ids = body["vllm_xargs"]["force_ids"]
        tops = [{f"token_id:{token}": log_p, "token_id:1": -3.0} for token in ids]
        choice = {"text": "a" * len(ids), "logprobs": {"token_logprobs": [log_p] * len(ids), "top_logprobs": tops}}
        if self.server.token_ids:
            choice |= {"token_ids": ids, "prompt_token_ids": prompt_ids}
        if "prompt_logprobs" in body:
            scored = [{str(token): {"logprob": log_p}, "1": {"logprob": -3.0}} for token in prompt_ids[1:]]
            choice["prompt_logprobs"] = [None, *scored]
        return choice

    def record(self, body):
        self.server.calls.append((self.path, self.headers.get("Authorization"), body))

    def is_refused(self):
        return self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}"

    def respond(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def stub_server() -> Iterator[StubServer]:
    with StubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
