"""Free loopback ports: for the servers, and the listening socket of the web process.

Not here: a promise that a port stays free until a server binds it; whoever starts the server tries again.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket

from jobsboard.local.errors import UsageError

LOOPBACK = "127.0.0.1"
DEFAULT_WEB_PORT = 8000
#: Below the range from which Linux takes the ports of outgoing connections, so that a restarted server finds its own.
SERVER_PORTS = range(20_000, 32_000)


def free() -> int:
    """Find a loopback port that nobody listens on at this moment."""
    chosen = random.SystemRandom()
    for _ in range(200):
        port = chosen.choice(SERVER_PORTS)
        with contextlib.suppress(OSError), _bound(port):
            return port
    with _bound(0) as bound:
        return int(bound.getsockname()[1])


def listen_for_web() -> socket.socket:
    """Bind the web process's port: PORT when it is set, else 8000 or the next free one.

    The supervisor holds the socket and lends it to gunicorn: nobody can take the port in between, and a restart of
    the web process refuses no connection.
    Raises: UsageError when PORT is no port, or taken.
    """
    wanted = os.environ.get("PORT", "").strip()
    if wanted:
        if not wanted.isdigit() or not 1 <= int(wanted) <= 65_535:
            raise UsageError(f"PORT={wanted} is not a port number")
        candidates = range(int(wanted), int(wanted) + 1)
    else:
        candidates = range(DEFAULT_WEB_PORT, DEFAULT_WEB_PORT + 1_000)
    for port in candidates:
        try:
            bound = _bound(port)
        except PermissionError:
            raise UsageError(f"PORT={port} needs privileges that this user does not have") from None
        except OSError:
            continue
        bound.listen(2048)
        return bound
    if wanted:
        raise UsageError(f"PORT={wanted} is taken by another program; choose another, or unset PORT for a free one")
    raise UsageError(f"no free port between {candidates.start} and {candidates.stop - 1}")


def listen(*, rather: int | None = None) -> socket.socket:
    """Bind a free loopback port, that one if it can be had, for a process that inherits it."""
    if rather is not None:
        with contextlib.suppress(OSError):
            return _listening(_bound(rather))
    while True:
        with contextlib.suppress(OSError):
            return _listening(_bound(free()))


def _listening(bound: socket.socket) -> socket.socket:
    bound.listen(128)
    return bound


def _bound(port: int) -> socket.socket:
    """Bind a loopback port; connections of a server that ended a moment ago are no obstacle."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
        # Linux lets two sockets bind with SO_REUSEADDR until one of them listens.
        bound.listen(1)
    except OSError:
        bound.close()
        raise
    return bound
