"""A second connection in a thread, and a way to see that it waits for a lock."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from django.db import OperationalError, connection, connections
from pytest_django import DjangoDbBlocker

from tests.conftest import _empty
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


class Call(Generic[T]):
    """One piece of work of a `Second`."""

    def __init__(self, work: Callable[[], T], *, backend: int) -> None:
        self._work = work
        self._backend = backend
        self._ended = threading.Event()
        self._value: list[T] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Do the work; the second connection calls this."""
        try:
            self._value.append(self._work())
        except Exception as error:
            self.error = error
        finally:
            self._ended.set()

    def waits_for_us(self) -> bool:
        """Return True as soon as it waits for a lock of the session that asks, False when it ended without."""
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            if sql("SELECT pg_backend_pid() = ANY (pg_blocking_pids(%s))", self._backend) == [(True,)]:
                return True
            if self._ended.wait(0.002):
                return False
        raise AssertionError("neither waits for us nor ends")

    def outcome(self) -> T:
        """Return what it returned, or raise what it raised."""
        assert self._ended.wait(DEADLINE), "the second session still works"
        if self.error is not None:
            raise self.error
        return self._value[0]


class Second(threading.Thread):
    """A second connection that stays: for many short pieces of work, one after the other."""

    def __init__(self, *, lock_timeout: str = "8s") -> None:
        super().__init__(daemon=True)
        self._lock_timeout = lock_timeout
        self._calls: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._ready = threading.Event()
        self.backend = 0
        self.start()
        assert self._ready.wait(DEADLINE)

    def run(self) -> None:
        """Connect, say who we are, work until `close`."""
        try:
            sql(f"SET lock_timeout = '{self._lock_timeout}'")
            self.backend = sql("SELECT pg_backend_pid()")[0][0]
            self._ready.set()
            while (call := self._calls.get()) is not None:
                call.run()
        finally:
            connection.close()

    def begin(self, work: Callable[[], T]) -> Call[T]:
        """Let it start to do something."""
        call = Call(work, backend=self.backend)
        self._calls.put(call)
        return call

    def close(self) -> None:
        """Let it disconnect."""
        self._calls.put(None)
        self.join(DEADLINE)
        assert not self.is_alive(), "the second session still works"


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


@contextmanager
def committing_database(blocker: DjangoDbBlocker) -> Iterator[None]:
    """Do what the fixture `transactional_db` does, for one of the same name that serves a whole module."""
    with blocker.unblock():
        _empty()
        try:
            yield
        finally:
            _empty()
            connections.close_all()


_WRITES = re.compile(r"\b(INSERT INTO|DELETE FROM|UPDATE) \"?(queues|jobsboard)_")


@dataclass
class Lost:
    """How many commits were seen, and whether an answer was lost."""

    seen: int = 0
    happened: bool = False


@contextmanager
def answer_lost(nth: int, *, reached: bool) -> Iterator[Lost]:
    """Break this thread's connection at its nth commit (RELIABILITY.md I-03): after it was made, or before.

    A statement that writes outside of a transaction is a commit as well. The server sees the same as when the network
    fails: the session is gone.
    """
    conn: Any = connections["default"]
    real, lost = conn._commit, Lost()

    def commit(do: Callable[[], T]) -> T:
        lost.seen += 1
        if lost.seen != nth:
            return do()
        if reached:
            do()
        conn.connection.close()
        lost.happened = True
        raise OperationalError("server closed the connection unexpectedly")

    def statement(execute: Callable[..., T], query: str, params: Any, many: bool, context: Any) -> T:
        if conn.in_atomic_block or not _WRITES.search(query):
            return execute(query, params, many, context)
        return commit(lambda: execute(query, params, many, context))

    conn._commit = lambda: commit(real)
    try:
        with conn.execute_wrapper(statement):
            yield lost
    finally:
        del conn._commit
