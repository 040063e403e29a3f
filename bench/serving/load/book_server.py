"""The book on loopback: llama-benchy takes the text of its prompts only by URL."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.accuracy.texts import book

BYTES_PER_TOKEN = 8  # at most, in English
STARTS = 8  # a prompt starts anywhere in the text, so it has so many times the longest prompt's length


@contextmanager
def book_server(longest_prompt: int) -> Iterator[str]:
    """Serve enough of the book for prompts of up to `longest_prompt` tokens, on loopback; yields its URL.

    llama-benchy tokenises all of it at each start: 0.4 s for the whole book.
    """
    text = book()[: BYTES_PER_TOKEN * STARTS * longest_prompt].decode(errors="ignore").encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/book.txt"
        finally:
            server.shutdown()
            thread.join()
