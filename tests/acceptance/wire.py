"""Requests byte for byte over a socket, and what must be true of every answer, whatever was asked.

Not here: the server (fixture `web`).
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.factories import sql

MEMBERS = {"type", "title", "status", "detail", "code", "pointer", "request_id"}
TABLES = ("queues_job", "queues_dedupekey", "queues_callback", "queues_outcomedelta", "queues_auditentry")


@dataclass(frozen=True)
class Answer:
    """A response. Names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Read the body."""
        return json.loads(self.body)

    def problem(self, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
        """Insist that this is the problem and return it."""
        said: dict[str, Any] = self.json()
        assert (self.status, said["code"]) == (status, code), self.body[:500]
        assert pointer is None or said["pointer"] == pointer, said
        return said


@dataclass
class Web:
    """A web server that runs, and a key for everything."""

    address: tuple[str, int]
    key: str

    def raw(self, request: bytes | Iterable[bytes], *, method: str = "POST", seconds: float = 20) -> Answer:
        """Send bytes as they are and read one answer, which must be one that the API may give."""
        with closing(socket.create_connection(self.address, timeout=seconds)) as connection:
            return self.exchange(connection, request, method=method)

    @staticmethod
    def exchange(connection: socket.socket, request: bytes | Iterable[bytes], *, method: str = "POST") -> Answer:
        """Send bytes over a connection and read one answer."""
        try:
            for piece in [request] if isinstance(request, bytes) else request:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            # The server has answered and does not want the rest.
            pass
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return checked(Answer(response.status, headers, response.read()), method=method)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        key: str | None = "",
        kind: str = "application/json",
        headers: Iterable[tuple[str, str]] = (),
    ) -> Answer:
        """Send a request that is well-formed HTTP; `key` None sends none, else another one than that for everything."""
        return self.raw(self.head(method, path, body, key=key, kind=kind, headers=headers) + (body or b""),
                        method=method)  # fmt: skip

    def head(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        key: str | None = "",
        kind: str = "application/json",
        headers: Iterable[tuple[str, str]] = (),
    ) -> bytes:
        """Return the head of a request; a body adds its type and its length."""
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key or self.key}")
        if body is not None:
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        """Send JSON below /api/v1; bytes are sent as they are."""
        return self.send("POST", f"/api/v1{path}", body if isinstance(body, bytes) else json.dumps(body).encode(),
                         **options)  # fmt: skip

    def get(self, path: str, **options: Any) -> Answer:
        """Read below /api/v1."""
        return self.send("GET", f"/api/v1{path}", **options)


def checked(answer: Answer, *, method: str) -> Answer:
    """Insist on what holds for every answer of the API: no HTML, no redirect, no 500, errors as problem documents."""
    kind = answer.headers.get("content-type", "").split(";")[0]
    assert "html" not in kind, answer
    assert not answer.body.lstrip().startswith(b"<"), answer.body[:200]
    assert answer.status not in (301, 302, 303, 307, 308, 500, 502), answer
    if answer.status >= 400:
        assert kind == "application/problem+json", answer
        if method != "HEAD":
            said = answer.json()
            assert set(said) >= MEMBERS, said
            assert said["status"] == answer.status
            assert said["request_id"] == answer.headers["x-request-id"]
            assert "Traceback" not in answer.body.decode()
    return answer


def rows() -> dict[str, Any]:
    """Return how much is stored of everything that a request can write, and a digest of the jobs."""
    found: dict[str, Any] = {table: sql(f"SELECT count(*) FROM {table}") for table in TABLES}
    found["digest"] = sql("SELECT md5(string_agg(j::text, ',' ORDER BY id)) FROM queues_job j")
    return found


def quiet_rows() -> dict[str, Any]:
    """Return `rows()` once nothing changes any more: a request whose client has gone may still be at work."""
    seen, since = rows(), time.monotonic()
    give_up = since + 20
    while time.monotonic() - since < 0.3:
        assert time.monotonic() < give_up, "rows change and nobody asks for it"
        time.sleep(0.05)
        now = rows()
        if now != seen:
            seen, since = now, time.monotonic()
    return seen


def until(condition: Callable[[], object], *, seconds: float) -> bool:
    """Wait for a condition; False when it does not hold in time."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        threading.Event().wait(0.02)
    return True
