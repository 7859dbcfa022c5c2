"""A second connection in a thread, and a way to see that it waits for a lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from django.db import OperationalError, connection, connections

from tests.factories import sql

T = TypeVar("T")
DEADLINE = 10.0


class Rival(threading.Thread, Generic[T]):
    """Runs a function on a connection of its own."""

    def __init__(self, work: Callable[[], T], *, lock_timeout: str = "8s") -> None:
        super().__init__(daemon=True)
        self._work = work
        self._lock_timeout = lock_timeout
        self._ready = threading.Event()
        self._value: list[T] = []
        self.error: Exception | None = None
        self.backend = 0
        self.start()
        assert self._ready.wait(DEADLINE)

    def run(self) -> None:
        """Connect, say who we are, work, disconnect."""
        try:
            sql(f"SET lock_timeout = '{self._lock_timeout}'")
            self.backend = sql("SELECT pg_backend_pid()")[0][0]
            self._ready.set()
            self._value.append(self._work())
        except Exception as error:
            self.error = error
        finally:
            connection.close()

    def waits(self) -> bool:
        """Return True as soon as it waits for a lock, False when it ended without waiting."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            if sql("SELECT cardinality(pg_blocking_pids(%s)) > 0", self.backend) == [(True,)]:
                return True
            if not self.is_alive():
                return False
            self.join(0.005)
        raise AssertionError("neither waits nor ends")

    def outcome(self) -> T:
        """Return what it returned, or raise what it raised."""
        self.join(DEADLINE)
        assert not self.is_alive(), "the rival still runs"
        if self.error is not None:
            raise self.error
        return self._value[0]


def together(*works: Callable[[], T]) -> list[Rival[T]]:
    """Start functions at the same moment, each on a connection of its own, and wait for their ends."""
    barrier = threading.Barrier(len(works))

    def behind(work: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            barrier.wait(DEADLINE)
            return work()

        return run

    rivals = [Rival(behind(work)) for work in works]
    for rival in rivals:
        rival.join(60)
        assert not rival.is_alive()
    return rivals


def outcomes(rivals: Sequence[Rival[T]]) -> list[T]:
    """Return what each returned; raises the first error."""
    return [rival.outcome() for rival in rivals]


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE behind a Django database error."""
    return getattr(getattr(error, "__cause__", None), "sqlstate", None)


@contextmanager
def commit_then_lie() -> Iterator[None]:
    """Let the next commits happen, and tell the caller that they failed (RELIABILITY.md I-03)."""
    conn: Any = connections["default"]
    real = conn._commit

    def lie() -> None:
        real()
        raise OperationalError("server closed the connection unexpectedly")

    conn._commit = lie
    try:
        yield
    finally:
        conn._commit = real
