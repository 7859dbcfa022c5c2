"""A receiver that answers as a test says, endpoints that lead to it, and rounds of the service that sends."""

from __future__ import annotations

import http.server
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jobsboard.alerts import endpoints
from jobsboard.alerts.delivery import Webhooks
from jobsboard.alerts.endpoints import Wanted, Who
from jobsboard.models import WebhookDelivery, WebhookEndpoint, every_event
from tests.factories import sql

PATH_SECRET: Final = "T0KEN-B0B-x7Qq9"


@dataclass(frozen=True, kw_only=True)
class Got:
    """A request as it arrived. Names of headers are lower case."""

    headers: Mapping[str, str]
    body: bytes
    path: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Say:
    """An answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"


HANG: Final = "hang"
"""An answer that never comes."""
RESET: Final = "reset"
"""A connection that is cut instead of an answer."""


class Receiver:
    """An HTTP server that keeps what it got and answers as `answers` says, one each; the last one stays."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: list[Say | str] = [Say()]
        self.at_once = self.most_at_once = 0
        self.released = threading.Event()
        self.before: Callable[[], object] = lambda: None
        """What happens between a request and its answer."""
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *args: Any) -> None:
                return

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *args: Any) -> None:
                """Say nothing of senders that went away."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        """Return an address of it with a path that is a secret."""
        return f"http://127.0.0.1:{self.port}/hooks/{PATH_SECRET}"

    @property
    def ids(self) -> list[str]:
        """Return the ids of the messages that it got, in order."""
        return [one.headers["webhook-id"] for one in self.got]

    def events(self) -> list[str]:
        """Return the types of the messages that it got, in order."""
        return [json.loads(one.body)["type"].removeprefix("alert.") for one in self.got]

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._lock:
            self.got.append(Got(headers=headers, body=body, path=request.path, at=time.monotonic()))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.before()
            self._say(request, answer)
        finally:
            with self._lock:
                self.at_once -= 1

    def _say(self, request: http.server.BaseHTTPRequestHandler, answer: Say | str) -> None:
        if answer == HANG:
            while not self.released.wait(0.02) and not _left(request.connection):
                pass
        if isinstance(answer, str):
            # No time to linger: the peer sees a reset.
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
            return
        request.send_response(answer.status)
        for name, value in answer.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(answer.body)))
        request.end_headers()
        request.wfile.write(answer.body)

    def close(self) -> None:
        """Stop, and let whoever hangs go."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def _left(connection: socket.socket) -> bool:
    """Tell whether the sender has hung up."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""


def receiving(receiver: Receiver | str, name: str = "ops", **overrides: Any) -> WebhookEndpoint:
    """Make an endpoint at a receiver, or at an address, as a person would."""
    wanted = Wanted(
        name=name, format=overrides.pop("format", "standard"), events=every_event(), least_severity="warning",
        url=receiver if isinstance(receiver, str) else receiver.url, every_seconds=overrides.pop("every_seconds", 60),
    )  # fmt: skip
    endpoint, secret = endpoints.create(wanted, who=Who(actor="ada"))
    if overrides:
        WebhookEndpoint.objects.filter(pk=endpoint.pk).update(**overrides)
        endpoint.refresh_from_db()
    SECRETS[endpoint.pk] = secret
    return endpoint


SECRETS: Final[dict[int, str]] = {}
"""What was shown once, of each endpoint that `receiving` made."""


def run_until(service: Webhooks, condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Run rounds of the service until something is true."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            rows = list(WebhookDelivery.objects.values_list("id", "state", "attempts")[:5])
            raise AssertionError(f"waited {seconds} s in vain: {rows}")
        if not service.run_once():
            threading.Event().wait(0.005)


def settle(service: Webhooks, *, seconds: float = 20) -> None:
    """Run rounds until nothing is due and nothing is under way."""
    run_until(service, lambda: not service.run_once() and not due(), seconds=seconds)


def due() -> int:
    """Return how many deliveries are to be tried now."""
    [(n,)] = sql(
        "SELECT count(*) FROM jobsboard_webhookdelivery d JOIN jobsboard_webhookendpoint e ON e.id = d.endpoint_id"
        " WHERE d.state = 'pending' AND d.due_at <= jobs_now() AND e.enabled"
    )
    return int(n)


def hurry() -> None:
    """Let everything that waits for its next try be due now."""
    sql("UPDATE jobsboard_webhookdelivery SET due_at = jobs_now() - interval '1 ms' WHERE state = 'pending'")
