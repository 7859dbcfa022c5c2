"""A broker and a PostgreSQL of a test's own, which it may freeze, empty and kill; they end with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis

from jobsboard.local import layout, logs, ports, postgres, supervise, valkey
from jobsboard.local.layout import MARKER, Layout
from jobsboard.local.supervise import Child

START_SECONDS = 30.0


@dataclass
class OwnBroker:
    """A Valkey server on a port of its own. What it held is gone when it was killed."""

    server: valkey.Valkey
    port: int
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        """Return where it is."""
        return self.server.url(port=self.port)

    def waiting(self, queue: str) -> int:
        """Return how many messages wait, asked with more patience than a producer has."""
        with redis.Redis.from_url(self.url, socket_timeout=20) as client:
            return int(client.llen(queue))

    def start(self) -> None:
        """Start it, empty, and wait until it serves."""
        spec = self.server.spec(port=self.port, env=self.env)
        assert spec.log is not None
        logs.begin(spec.log)
        self.process = supervise._spawn(spec)
        _wait(lambda: self.server.serves(port=self.port), self.process)

    def freeze(self) -> None:
        """Let it hold its connections and answer nobody."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; a frozen one as well."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)


@dataclass
class OwnPostgres:
    """A PostgreSQL server with a data directory of its own, durable as in production."""

    server: postgres.Postgres
    port: int
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        """Return where its database is."""
        return self.server.url(port=self.port)

    def start(self) -> None:
        """Start it and wait until it takes connections, after a crash until it has recovered."""
        spec = self.server.spec(port=self.port, env=self.env)
        self.process = supervise._spawn(spec)
        child = Child(spec=spec, popen=self.process, started_at=time.monotonic(), restart=False)
        _wait(lambda: self.server.serves(child), self.process)

    def crash(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does: no checkpoint, the next start recovers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)
        self.process = None

    def end(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            self.crash()


@contextmanager
def own_broker() -> Iterator[OwnBroker]:
    """Lend a broker that serves."""
    with layout.private() as home:
        secrets = layout.draw_secrets()
        made = OwnBroker(valkey.Valkey(stack=home, password=secrets.broker_password), ports.free(), _marker(home))
        try:
            made.start()
            yield made
        finally:
            made.kill()


@contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """Lend a PostgreSQL with an empty database."""
    with layout.private() as home:
        server = postgres.of_stack(home, password=layout.draw_secrets().database_password, throwaway=True)
        server.initialise()
        made = OwnPostgres(server, ports.free(), _marker(home))
        try:
            made.start()
            server.create_database(port=made.port)
            yield made
        finally:
            made.end()


def _marker(home: Layout) -> dict[str, str]:
    # By this, `python -m jobsboard.local` finds and ends what a killed test run leaves behind.
    return {MARKER: str(home.root)}


def _wait(serves: object, process: subprocess.Popen[bytes]) -> None:
    assert callable(serves)
    give_up = time.monotonic() + START_SECONDS
    while not serves():
        assert process.poll() is None, "the server ended while it started"
        assert time.monotonic() < give_up, "the server does not serve"
        threading.Event().wait(0.02)
