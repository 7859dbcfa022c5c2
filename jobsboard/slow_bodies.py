"""Cuts off clients that do not send their body in time: a thread that waits for one serves nobody else (H-24).

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
                        # Whoever reads sees the end of the stream; an answer can still be written.
                        with contextlib.suppress(OSError):
                            one.connection.shutdown(socket.SHUT_RD)


_watch: Final = _Watch()


class SlowBodiesMiddleware:
    """Gives every body REQUEST_BODY_SECONDS to arrive."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        connection = request.META.get("gunicorn.socket")
        has_body = request.META.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in request.META
        if connection is None or not has_body:
            return self.get_response(request)
        one = Waiting(connection, until=time.monotonic() + settings.REQUEST_BODY_SECONDS)
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
