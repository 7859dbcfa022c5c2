"""What the ledger of `make chaos` says to web about work that was handed to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.chaos.callbacks import Caller, manner


class Web(ThreadingHTTPServer):
    """Stands in for web: notes what comes, and refuses as often as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.refuse = 0
        self.lock = threading.Lock()
        self.heard: list[tuple[str, str, str]] = []


class _Answer(BaseHTTPRequestHandler):
    server: Web

    def do_POST(self) -> None:
        """Answer 503 for a while, then 200."""
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.heard.append((self.path, said["outcome"], said["ref"]))
            self.server.refuse -= 1
            status = 503 if self.server.refuse >= 0 else 200
        text = json.dumps({"result": "confirmed", "state": "confirmed"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[Web]:
    """A web that answers."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join(5)
    server.server_close()


def _until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        threading.Event().wait(0.02)


def _key(how: str) -> str:
    return next(key for n in range(1000) if manner("7", key := f"k{n}") == how)


@pytest.mark.parametrize(
    ("how", "outcomes"),
    [
        ("once", ["confirmed"]),
        ("twice", ["confirmed", "confirmed"]),
        ("early", ["confirmed"]),
        ("confirm, then reject", ["confirmed", "rejected"]),
        ("reject, then confirm", ["rejected", "confirmed"]),
    ],
)
def test_each_manner_says_what_it_is_named_for(web: Web, how: str, outcomes: list[str]) -> None:
    """In this order, and nothing is left over."""
    lines: list[dict[str, Any]] = []
    caller = Caller(web.server_port, note=lines.append, seed="7")
    key = _key(how)
    early = caller.plan({"key": key, "job": "j", "run": 1, "ref": f"{key}/1"}, token="t")
    assert (early is not None) == (how == "early")
    _until(lambda: caller.pending() == 0)
    assert web.heard == [("/api/v1/callbacks/jobs/t", outcome, f"{key}/1") for outcome in outcomes]
    assert [line["outcome"] for line in lines] == outcomes
    assert {line["result"] for line in lines} == {"confirmed"}


def test_a_callback_that_web_did_not_take_comes_again(web: Web) -> None:
    """As a provider would, until it is answered."""
    web.refuse = 2
    lines: list[dict[str, Any]] = []
    caller = Caller(web.server_port, note=lines.append, seed="7")
    caller.plan({"key": _key("once"), "job": "j", "run": 1, "ref": "r"}, token="t")
    _until(lambda: caller.pending() == 0)
    assert len(web.heard) == 3
    assert [line["tries"] for line in lines] == [3]
