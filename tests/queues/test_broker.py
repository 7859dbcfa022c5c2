"""Hints are best effort: every call ends soon and raises nothing, whatever the broker does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from celery import current_app

from queues import broker

IDS = [uuid4(), uuid4()]


@pytest.fixture(autouse=True)
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[broker._Channel]:
    """A connection of this test's own."""
    made = broker._Channel()
    monkeypatch.setattr(broker, "_channel", made)
    yield made
    made._close()


def _use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(current_app.conf, "broker_url", url)
    monkeypatch.setitem(current_app.conf, "broker_write_url", url)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A broker that takes connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    _use(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", monkeypatch)
    yield
    listener.close()


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    _use(f"redis://127.0.0.1:{port}/0", monkeypatch)


def _timed(limit: float) -> bool:
    began = time.monotonic()
    sent = broker.publish([("tier2", IDS)])
    assert time.monotonic() - began < limit
    return sent


@pytest.mark.parametrize("how", ["frozen", "gone"])
def test_a_broker_that_does_not_answer_holds_nobody(
    how: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 20, I-42: publishing ends within 0.4 s, says that it failed, and is left alone for two seconds."""
    request.getfixturevalue(how)
    assert _timed(0.4) is False
    for _ in range(100):
        assert _timed(0.01) is False
    assert broker.depth("tier2", max_age=0.0) is None
    assert broker.is_short("tier2") is False
    assert broker.ping() is False
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + broker.LEAVE_SECONDS - 0.1)
    assert broker._channel.down
    monkeypatch.setattr(time, "monotonic", lambda: now + broker.LEAVE_SECONDS + 0.5)
    assert not broker._channel.down


def test_a_frozen_broker_does_not_hold_a_measurement(frozen: None) -> None:
    """Scenario 20: asking how long a queue is hangs no longer than publishing."""
    began = time.monotonic()
    assert broker.depth("tier2", max_age=0.0) is None
    assert time.monotonic() - began < 0.4


class Relay:
    """Passes bytes between us and the broker until it freezes."""

    def __init__(self) -> None:
        real = urlsplit(current_app.conf.broker_url)
        self._to = (real.hostname, real.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = real._replace(
            netloc=f"{real.netloc.rpartition('@')[0]}@127.0.0.1:{self._listener.getsockname()[1]}"
        ).geturl()
        self.frozen = threading.Event()
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(self._to)
                self._sockets += [ours, theirs]
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.frozen.is_set():
                    return
                sink.sendall(data)

    def close(self) -> None:
        """End all threads."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_a_broker_that_freezes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 20: the connection was good a moment ago; the call still ends, and later the next one connects again."""
    queue, relay, direct = f"test-{uuid4().hex}", Relay(), current_app.conf.broker_url
    _use(relay.url, monkeypatch)
    assert broker.publish([(queue, IDS)])
    relay.frozen.set()
    assert _timed(0.4) is False
    assert broker._channel.down
    _use(direct, monkeypatch)
    broker._channel._down_until = 0.0
    assert broker.depth(queue, max_age=0.0) == 1
    relay.close()
    _purge(queue)


def _purge(queue: str) -> None:
    broker._channel.call(lambda producer: producer.channel.queue_purge(queue=queue), 0)


def test_hints_arrive_and_are_counted() -> None:
    """One message for each chunk, ids only, on the queue that was named."""
    queue = f"test-{uuid4().hex}"
    assert broker.depth(queue) == 0
    assert broker.publish([(queue, IDS), (queue, IDS[:1])])
    assert broker.depth(queue) == 0, "at most 200 ms old"
    assert broker.depth(queue, max_age=0.0) == 2
    assert broker.publish([])
    with current_app.connection_for_read() as connection:
        message = connection.default_channel.basic_get(queue, no_ack=True)
        assert message.headers["task"] == "queues.run"
        assert message.payload[0] == [[str(i) for i in IDS]]
        assert connection.default_channel.basic_get(queue, no_ack=True).payload[0] == [[str(IDS[0])]]


def test_a_queue_is_short_below_sixteen_messages() -> None:
    """Then a new job is published at once, alone."""
    queue = f"test-{uuid4().hex}"
    assert broker.publish([(queue, IDS)] * (broker.SHORT_QUEUE - 1))
    assert broker.depth(queue, max_age=0.0) == broker.SHORT_QUEUE - 1
    assert broker.is_short(queue)
    assert broker.publish([(queue, IDS)])
    assert broker.depth(queue, max_age=0.0) == broker.SHORT_QUEUE
    assert not broker.is_short(queue)
    _purge(queue)


def test_a_fork_forgets_its_parents_connection() -> None:
    """Two processes on one socket would read each other's answers."""
    assert broker.publish([(f"test-{uuid4().hex}", IDS)])
    parents = broker._channel._connection
    broker.after_fork()
    assert broker._channel._connection is None
    assert parents is not None
    parents.release()
