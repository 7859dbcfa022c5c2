"""A worker whose connection to the broker is dead without having said so."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from queues.models import WorkerProcess
from tests.acceptance.conftest import Stack
from tests.acceptance.jobs import QUICK
from tests.factories import accept

pytestmark = pytest.mark.acceptance


class Wire:
    """A TCP proxy that can swallow what its connections carry, and still takes new ones."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._dead: set[int] = set()
        self._count = 0
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._start(self._accept)

    def swallow(self) -> None:
        """From now on nothing comes through what is connected; both ends stay open and acknowledge."""
        self._dead |= set(range(self._count + 1))

    def close(self) -> None:
        """Cut the wire."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in (self._server, *self._ends):
            end.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._count += 1
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    self._start(self._pump, source, sink, self._count)

    def _pump(self, source: socket.socket, sink: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if number not in self._dead:
                    sink.sendall(data)
        if number not in self._dead:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    """A wire between this stack's processes and their broker; a worker counts as deaf after eight seconds."""
    url = urlsplit(stack.env["BROKER_URL"])
    made = Wire(url.hostname or "", url.port or 6379)
    password = f":{url.password}@" if url.password else ""
    stack.env["BROKER_URL"] = f"redis://{password}127.0.0.1:{made.port}{url.path}"
    stack.env["WORKER_DEAF_SECONDS"] = "8"
    yield made
    made.close()


def test_a_deaf_worker_is_found_and_replaced(stack: Stack, wire: Wire) -> None:
    """I-23: its connections swallow everything; within the time it says so, ends, and its successor does the work."""
    stack.scheduler()
    worker = stack.worker()
    accept(1, kind=QUICK)
    stack.all_confirmed(1, seconds=20)
    wire.swallow()
    accept(1, kind=QUICK)
    stack.until(lambda: WorkerProcess.objects.filter(pid=worker.pid).exclude(trouble="").exists(), seconds=30)
    stack.until(lambda: worker.poll() is not None, seconds=30)
    stack.worker()
    stack.all_confirmed(2, seconds=30)
