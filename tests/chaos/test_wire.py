"""The wire of `make chaos`: it carries, swallows, buries and cuts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks.chaos.wire import Wire

QUIET_SECONDS = 0.3


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    server = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = []

    def answer(end: socket.socket) -> None:
        try:
            while data := end.recv(100):
                end.sendall(data)
        except OSError:
            return

    def take() -> None:
        while True:
            try:
                end, _ = server.accept()
            except OSError:
                return
            ends.append(end)
            threading.Thread(target=answer, args=(end,), daemon=True).start()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for end in (server, *ends):
        end.close()


@pytest.fixture
def wire(echo: int) -> Iterator[Wire]:
    """A wire to the echo."""
    made = Wire("127.0.0.1", echo)
    yield made
    made.close()


def _call(wire: Wire) -> socket.socket:
    return socket.create_connection(("127.0.0.1", wire.port), timeout=10)


def _passes(end: socket.socket) -> bool:
    end.sendall(b"hello")
    return end.recv(100) == b"hello"


def _is_silent(end: socket.socket) -> bool:
    end.sendall(b"hello")
    end.settimeout(QUIET_SECONDS)
    try:
        return not end.recv(100)
    except TimeoutError:
        return True


def test_what_is_swallowed_stays_open_and_silent(wire: Wire) -> None:
    """I-23: the peer acknowledges and never answers; a new connection passes."""
    with _call(wire) as old:
        assert _passes(old)
        assert (wire.carrying, wire.swallow(), wire.carrying) == (1, 1, 0)
        assert _is_silent(old)
        with _call(wire) as new:
            assert _passes(new)


def test_a_hole_takes_new_connections_too_and_they_stay_dead(wire: Wire) -> None:
    """I-23: whoever connects while it lasts is connected to nothing, also afterwards."""
    with _call(wire) as old:
        assert _passes(old)
        wire.hole(True)
        with _call(wire) as inside:
            assert _is_silent(inside)
            assert _is_silent(old)
            wire.hole(False)
            assert _is_silent(inside)
        with _call(wire) as new:
            assert _passes(new)


def test_a_reset_is_an_error_and_no_end(wire: Wire) -> None:
    """The peer is told at once, by an error."""
    with _call(wire) as end:
        assert _passes(end)
        assert wire.reset() == 1
        with pytest.raises(ConnectionResetError):
            end.recv(100)


def test_a_server_that_is_away_ends_the_connection(echo: int) -> None:
    """As it would without a wire; the wire goes on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    made = Wire("127.0.0.1", port)
    try:
        for _ in range(2):
            # The reset may come before the caller has seen that it is connected.
            with pytest.raises(ConnectionResetError), _call(made) as end:
                end.recv(100)
    finally:
        made.close()
