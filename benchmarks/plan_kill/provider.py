"""The world outside: a process that does a piece of work once for each idempotency key, and tells what it was asked.

POST /effects writes a line and then answers with its reference, after a delay in which a caller may die; a repeat of an
idempotency key gets the first one's reference and has no effect. GET /effects/IDEMPOTENCY_KEY says if there is one.
POST /runs notes that a body begins or ends; GET /running names the processes that have begun one and not ended it.
Run: `python -m benchmarks.plan_kill.provider PORT FILE SEED`.
"""

import json
import os
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DELAY_SECONDS, LONG_DELAY_SECONDS, LONG = 0.01, 1.0, 0.03
"""Most answers take up to the first, a share of LONG up to the second: so that kills find bodies at work."""


class Provider(ThreadingHTTPServer):
    """The server and what it knows."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int, path: Path, seed: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.seed = seed
        self.lock = threading.Lock()
        self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._known: dict[str, str] = {}
        self._running: dict[tuple[str, int], int] = {}

    def take(self, said: dict[str, Any]) -> str:
        """Do the work unless this idempotency key had it done, and return its reference.

        A line has what the caller said, and `first`: whether it had an effect.
        """
        with self.lock:
            key = said["idempotency_key"]
            first = key not in self._known
            ref = self._known.setdefault(key, f"{said['key']}/{said['job']}/{said['run']}")
            os.write(self._log, json.dumps({**said, "ref": ref, "first": first}).encode() + b"\n")
        return ref

    def note(self, said: dict[str, Any]) -> None:
        """Keep that a body began or ended."""
        with self.lock:
            if said["phase"] == "start":
                self._running[said["job"], said["run"]] = said["pid"]
            else:
                self._running.pop((said["job"], said["run"]), None)

    def known(self, key: str) -> str | None:
        """Return the reference of what an idempotency key had done."""
        with self.lock:
            return self._known.get(key)

    def running(self) -> list[int]:
        """Return the processes that are at work, some of which are dead."""
        with self.lock:
            return sorted(set(self._running.values()))

    def delay(self, said: dict[str, Any]) -> float:
        """Return how long an answer takes, in seconds; the same for the same seed, key and run."""
        chance = random.Random(f"{self.seed} {said['key']} {said['run']}")
        return chance.uniform(0, LONG_DELAY_SECONDS if chance.random() < LONG else DELAY_SECONDS)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Provider
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Take what was done, then answer."""
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/runs":
            self.server.note(said)
            self._answer({})
            return
        ref = self.server.take(said)
        threading.Event().wait(self.server.delay(said))
        self._answer({"ref": ref})

    def do_GET(self) -> None:
        """Say whether an idempotency key had its effect, or who is at work."""
        if self.path == "/running":
            self._answer({"pids": self.server.running()})
        else:
            self._answer({"ref": self.server.known(self.path.rpartition("/")[2])})

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
    Provider(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]).serve_forever()
