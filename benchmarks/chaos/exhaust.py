"""Takes every connection that PostgreSQL has, as a program gone wild would, and asks web for a job meanwhile (I-39)."""

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from benchmarks.chaos.clients import Client, Told
from benchmarks.chaos.handlers import PLAIN

HOLD_SECONDS: Final = 4.0
TAKE_SECONDS: Final = 20.0
BOUND_SECONDS: Final = 6.0
"""Web promises an answer within 3 s; the machine is busy, and so is the client."""
_OTHERS: Final = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> ALL(%s)"


@dataclass(frozen=True)
class Probe:
    """One request while no connection was free. `starved`: nobody else had one, before and after it."""

    key: str
    status: int | None
    retryable: bool
    seconds: float
    starved: bool


class Prober(Client):
    """A producer whose requests are never repeated: what was not accepted must not be there."""

    def __init__(self, *, port: int, api_key: str, seed: int) -> None:
        super().__init__(f"s{seed}p", port=port, api_key=api_key, rate=1.0, seed=seed)
        self.probes: list[Probe] = []

    def settle(self, deadline: float) -> list[str]:
        """Leave it as it is."""
        return []

    def probe(self, hold: "Hold") -> None:
        """Ask for a job of a new key, once, and note the answer."""
        self._close()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=BOUND_SECONDS).close()
        except ConnectionRefusedError:
            # Web itself is down just now: nobody is there to say anything.
            return
        key = f"{self.name}-{len(self.told)}"
        told = self.told[key] = Told(PLAIN)
        before = hold.is_complete()
        began = time.monotonic()
        found = self.ask({"type": PLAIN, "payload": {"key": key}, "dedupe_key": key})
        seconds = time.monotonic() - began
        self.counts["unknown" if found is None else self._note(told, *found)] += 1
        answer: Any = found[1] if found else {}
        self.probes.append(
            Probe(
                key=key,
                status=found[0] if found else None,
                retryable=bool(answer.get("retryable")),
                seconds=seconds,
                starved=before and hold.is_complete(),
            )
        )


class Hold:
    """All connections of a server, in one hand."""

    def __init__(self) -> None:
        self._held: list[psycopg.Connection[Any]] = []

    def __len__(self) -> int:
        return len(self._held)

    def take(self) -> None:
        """Take what is free, end the sessions of others, and take theirs. Raises: TimeoutError, psycopg.Error."""
        give_up = time.monotonic() + TAKE_SECONDS
        while True:
            self._fill()
            others = self._others()
            if not others and self._held:
                return
            if time.monotonic() > give_up:
                raise TimeoutError(f"{len(others)} sessions of others are still there")
            for pid in others:
                self._held[0].execute("SELECT pg_terminate_backend(%s)", [pid])

    def is_complete(self) -> bool:
        """Say whether nobody else has a connection."""
        return not self._others()

    def give_back(self) -> None:
        """End all."""
        for connection in self._held:
            with contextlib.suppress(psycopg.Error):
                connection.close()
        self._held.clear()

    def _fill(self) -> None:
        """Connect until the server refuses."""
        url = os.environ["DATABASE_URL"]
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                self._held.append(psycopg.connect(url, connect_timeout=5, autocommit=True))
        if not self._held:
            raise psycopg.OperationalError("not one connection")

    def _others(self) -> list[int]:
        mine = [connection.info.backend_pid for connection in self._held]
        return [pid for (pid,) in self._held[0].execute(_OTHERS, [mine])]


def exhaust(prober: Prober) -> str:
    """Hold everything for HOLD_SECONDS and probe meanwhile. Raises: TimeoutError, psycopg.Error."""
    hold = Hold()
    try:
        hold.take()
        count, until, first = len(hold), time.monotonic() + HOLD_SECONDS, len(prober.probes)
        while time.monotonic() < until:
            prober.probe(hold)
            threading.Event().wait(0.2)
    finally:
        hold.give_back()
    return f"{count} connections held, {len(prober.probes) - first} requests meanwhile"
