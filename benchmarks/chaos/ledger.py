"""The world outside: a process with a storage of its own that counts what jobs really did.

POST /effects writes a line and then answers with its reference, after a delay in which a caller may die.
GET /effects/KEY says whether there is one. Run: `python -m benchmarks.chaos.ledger PORT FILE`.
"""

import json
import os
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DELAY_SECONDS, LONG_DELAY_SECONDS, LONG = 0.03, 1.5, 0.1
"""Most answers take up to the first, a share of LONG up to the second: so that kills find bodies at work."""


class Ledger(ThreadingHTTPServer):
    """The server and what it knows."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int, path: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.known: dict[str, str] = {}
        self.lock = threading.Lock()

    def write(self, effect: dict[str, Any]) -> str:
        """Keep an effect and return its reference."""
        with self.lock:
            ref = f"{effect['key']}/{effect['run']}"
            os.write(self.log, json.dumps(effect | {"ref": ref, "at": time.time()}).encode() + b"\n")
            self.known.setdefault(effect["key"], ref)
        return ref


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Ledger

    def do_POST(self) -> None:
        """Have the effect, then answer."""
        effect = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ref = self.server.write(effect)
        most = LONG_DELAY_SECONDS if random.random() < LONG else DELAY_SECONDS
        threading.Event().wait(random.uniform(0, most))
        self._answer({"ref": ref})

    def do_GET(self) -> None:
        """Say whether a key has an effect."""
        self._answer({"ref": self.server.known.get(self.path.rpartition("/")[2])})

    def _answer(self, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        """Serve; a caller that was killed is no error here."""
        try:
            super().handle()
        except OSError:
            return


if __name__ == "__main__":
    Ledger(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()
