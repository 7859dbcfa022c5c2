"""Cuts off clients that do not send their body in time: a thread that waits for one serves nobody else (H-24).

What ends early is an error for whoever reads it: half a form must not be taken for a whole one.

gunicorn's time-out is about workers that hang, not about clients: a few of them that send a byte now and then would
hold every thread. Not here: heads that come slowly, which are gunicorn's own matter.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

LOOK_SECONDS: Final = 0.5


@dataclass(eq=False)
class Waiting:
    """A request whose body may still be on its way."""

    connection: Any
    until: float
    passed: bool = False


class _Watch:
    """Looks for bodies that are late, in one thread, which starts with the first request that has a body."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Waiting] = set()
        self._thread: threading.Thread | None = None

    def begin(self, one: Waiting) -> None:
        with self._lock:
            self._waiting.add(one)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="slow-bodies", daemon=True)
                self._thread.start()

    def end(self, one: Waiting) -> None:
        with self._lock:
            self._waiting.discard(one)

    def _look(self) -> None:
        while True:
            threading.Event().wait(LOOK_SECONDS)
            now = time.monotonic()
            # Under the lock, so that nobody's next request on this connection is meant.
            with self._lock:
                for one in self._waiting:
                    if now > one.until and not one.passed:
                        one.passed = True
                        # Whoever reads sees the end of the stream; an answer can still be written. A TLS socket's own
                        # shutdown() would drop its keys, and send that answer in the clear.
                        with contextlib.suppress(Exception):
                            socket.socket.shutdown(one.connection, socket.SHUT_RD)


_watch: Final = _Watch()


class WholeBody:
    """A request's stream that must come to its announced end. Raises: OSError where it ends before."""

    def __init__(self, stream: Any, length: int, *, at_end: Callable[[], None]) -> None:
        self._stream = stream
        self._left = length
        self._at_end = at_end

    def read(self, size: int | None = -1) -> bytes:
        """Return some bytes, or all that are left."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        # Servers wait for as much as was asked for; Django asks for more than there can be.
        piece: bytes = self._stream.read(wanted)
        return self._count(piece, ended=len(piece) < wanted)

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line."""
        piece: bytes = self._stream.readline() if size is None or size < 0 else self._stream.readline(size)
        return self._count(piece, ended=size != 0 and not piece)

    def close(self) -> None:
        """Be done with it, as Django is after a form with files."""
        self._stream.close()

    def _count(self, piece: bytes, *, ended: bool) -> bytes:
        self._left -= len(piece)
        if self._left <= 0:
            self._at_end()
        elif ended:
            raise OSError(f"the body ended {self._left} bytes early")
        return piece


class SlowBodiesMiddleware:
    """Gives every body REQUEST_BODY_SECONDS to arrive, and lets none that is cut short pass for a whole one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        connection = request.META.get("gunicorn.socket")
        length = request.META.get("CONTENT_LENGTH") or "0"
        one = Waiting(connection, until=time.monotonic() + settings.REQUEST_BODY_SECONDS)
        if length.isascii() and length.isdigit() and int(length[:20]) > 0 and hasattr(request, "_stream"):
            request._stream = WholeBody(  # type: ignore[assignment]
                request._stream, int(length[:20]), at_end=lambda: _watch.end(one)
            )
        elif "HTTP_TRANSFER_ENCODING" not in request.META:
            return self.get_response(request)
        if connection is None:
            return self.get_response(request)
        request.waiting_body = one  # type: ignore[attr-defined]
        _watch.begin(one)
        try:
            return self.get_response(request)
        finally:
            _watch.end(one)


def is_late(request: HttpRequest) -> bool:
    """Tell whether the body was cut off because it did not come in time."""
    one: Waiting | None = getattr(request, "waiting_body", None)
    return one is not None and one.passed
