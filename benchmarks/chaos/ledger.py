"""The world outside: a process with a storage of its own that counts what jobs really did.

POST /effects writes a line and then answers with its reference, after a delay in which a caller may die.
GET /effects/KEY says whether there is one. POST /runs notes that a body begins or ends, by the monotonic clock that all
processes of a machine share, and says whether the key is cured, which POST /cures does. POST /handovers is an effect
whose outcome is told later, by callbacks (`callbacks.py`); GET /pending says how many of those are still to come,
GET /running which processes have begun a body and not ended it.
Run: `python -m benchmarks.chaos.ledger PORT FILE`.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.chaos.callbacks import Caller

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
        self.cured: set[str] = set()
        self.running: dict[tuple[str, int], int] = {}
        """Bodies that began and did not end, with their processes; some of these are dead."""
        self.lock = threading.Lock()
        self.seed = os.environ.get("CHAOS_SEED", "0")
        self.caller = Caller(int(os.environ.get("CHAOS_WEB_PORT", "0")), note=self.note, seed=self.seed)
        self._epoch = time.time() - time.monotonic()

    def note(self, line: dict[str, Any]) -> None:
        """Write a line."""
        with self.lock:
            os.write(self.log, json.dumps(line).encode() + b"\n")

    def write(self, effect: dict[str, Any]) -> str:
        """Keep an effect and return its reference."""
        with self.lock:
            ref = f"{effect['key']}/{effect['run']}"
            line = {"what": "effect"} | effect | {"ref": ref, "at": time.time()}
            os.write(self.log, json.dumps(line).encode() + b"\n")
            self.known.setdefault(effect["key"], ref)
        return ref

    def note_run(self, said: dict[str, Any]) -> bool:
        """Keep the beginning or the end of a body; says whether its key is cured."""
        self.note({"what": "run", **said, "at": said["mono"] + self._epoch})
        with self.lock:
            if said["phase"] == "start":
                self.running[said["job"], said["run"]] = said["pid"]
            else:
                self.running.pop((said["job"], said["run"]), None)
        return said["key"] in self.cured

    def delay(self, effect: dict[str, Any]) -> float:
        """Return how long the answer to an effect takes, in seconds; the same for the same seed, key and run."""
        chance = random.Random(f"{self.seed} {effect['key']} {effect['run']}")
        return chance.uniform(0, LONG_DELAY_SECONDS if chance.random() < LONG else DELAY_SECONDS)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Ledger

    def do_POST(self) -> None:
        """Take what was done, then answer."""
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ways: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/effects": self._effect,
            "/runs": lambda run: {"cured": self.server.note_run(run)},
            "/cures": self._cure,
            "/handovers": self._hand_over,
        }
        self._answer(ways[self.path](said))

    def do_GET(self) -> None:
        """Say whether a key has an effect, or how many callbacks are still to come."""
        if self.path == "/pending":
            self._answer({"pending": self.server.caller.pending()})
        elif self.path == "/running":
            with self.server.lock:
                pids = sorted(set(self.server.running.values()))
            self._answer({"pids": pids})
        else:
            self._answer({"ref": self.server.known.get(self.path.rpartition("/")[2])})

    def _effect(self, said: dict[str, Any]) -> dict[str, Any]:
        ref = self.server.write(said)
        threading.Event().wait(self.server.delay(said))
        return {"ref": ref}

    def _cure(self, said: dict[str, Any]) -> dict[str, Any]:
        self.server.cured.add(said["key"])
        return {}

    def _hand_over(self, said: dict[str, Any]) -> dict[str, Any]:
        token = said.pop("token")
        ref = self.server.write(said)
        # An early one is sent before the handler knows that its handover arrived.
        early = self.server.caller.plan({**said, "ref": ref}, token=token)
        if early is not None:
            early.wait(2.0)
        return {"ref": ref}

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
