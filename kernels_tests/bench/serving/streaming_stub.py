"""A stub server that streams chat completions at known times, or fails in a known way."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.servers.client import Endpoint

MODEL = Path(__file__).resolve().parents[3] / "models" / "tiny_gpt_oss"
FIRST_S, NEXT_S = 0.05, 0.02  # before the first token, and before each of the others
SECRET = "Zm9yIHRlc3Rz"  # in the headers of the endpoint


class Handler(BaseHTTPRequestHandler):
    """Answers each streamed request by the next of `server.behaviours`, by its name; then all with `tokens`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.server.metrics is None or self.path != "/metrics":
            return self.send_whole(404, "text/plain", "no such page")
        self.server.polls += 1
        return self.send_whole(200, "text/plain", self.server.metrics())

    def do_POST(self):
        self.request_body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.request_body.get("stream"):  # a warm-up, or a probe
            content = {"usage": {"prompt_tokens": 20}, "choices": [{"text": "a"}]}
            return self.send_whole(self.server.unstreamed_status, "application/json", json.dumps(content))
        with self.server.lock:
            self.server.streamed += 1
            name = self.server.behaviours.pop(0) if self.server.behaviours else "tokens"
        return getattr(self, name)()

    def tokens(self):
        self.start_stream()
        self.send_tokens(self.request_body["max_tokens"])
        usage = {"prompt_tokens": 20, "completion_tokens": self.request_body["max_tokens"]}
        self.send_event({"choices": [], "usage": usage})
        self.end_stream()

    def polled_tokens(self):
        """Stream after two more polls of /metrics."""
        polls = self.server.polls
        while self.server.polls < polls + 2:
            time.sleep(0.01)
        self.tokens()

    def wrong_type(self):
        self.start_stream("text/html")
        self.send_tokens(self.request_body["max_tokens"])
        self.end_stream()

    def json_body(self):
        message = {"role": "assistant", "content": "a b c d"}
        self.send_whole(200, "application/json", json.dumps({"choices": [{"message": message}]}))

    def page(self):
        self.send_whole(200, "text/html", "<html>\nlogin\n</html>")

    def empty(self):
        self.send_whole(200, "text/event-stream", "")

    def no_json(self):
        self.start_stream()
        self.send_chunk(b"data: {oops\n\ndata: \xff\xfe\n\n")
        self.end_stream()

    def no_object(self):
        self.start_stream()
        self.send_chunk(b'data: "abc"\n\n')
        self.end_stream()

    def too_many(self):
        self.send_whole(429, "text/plain", f"slow down, {self.headers['User-Agent']} {SECRET} " + "x" * 5000)

    def broken(self):
        self.send_whole(500, "text/html", "<html>broken</html>")

    def dropped(self):
        """End the connection within a chunked body."""
        self.start_stream()
        self.send_tokens(2)
        self.close_connection = True

    def cut(self):
        """End a body of unknown length after two tokens, as if it were complete."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.send_chunk = self.wfile.write
        self.send_tokens(2)
        self.close_connection = True

    def reset(self):
        """End the connection without a response."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def stalled(self):
        """Stream two tokens, then nothing."""
        self.start_stream()
        self.send_tokens(2)
        self.server.on_stall()
        self.server.closing.wait()
        self.close_connection = True

    def start_stream(self, content_type="text/event-stream"):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_tokens(self, count):
        for token in range(count):
            time.sleep(NEXT_S if token else FIRST_S)
            self.send_event({"choices": [{"delta": {"content": "a"}, "token_ids": [token]}]})

    def send_event(self, content):
        self.send_chunk(f"data: {json.dumps(content)}\n\n".encode())

    def send_chunk(self, content):
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    def end_stream(self):
        self.send_chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def send_whole(self, status, content_type, text):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.behaviours, self.streamed, self.unstreamed_status = [], 0, 200
        self.metrics, self.polls, self.on_stall = None, 0, lambda: None
        headers = {"Authorization": f"Bearer {SECRET}"}
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.server_port}", "tiny", str(MODEL), "the stub's log", headers)

    def handle_error(self, *_):
        pass


@contextmanager
def serve():
    """A stub server while the block runs."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
