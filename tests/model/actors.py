"""People and processes that act on the real database: each has a thread and a connection of its own, and a fake clock.

An actor's transaction may be left open between two steps, so that the others meet its locks.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from django.db import connection, transaction

from tests.factories import sql

T = TypeVar("T")
START: Final = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
"""Second 0 of the model's clock."""
DEADLINE: Final = 20.0
CLOCK: Final = "coalesce(nullif(current_setting('model.now', true), '')::timestamptz, {real})"
_FUNCTIONS: Final = {
    "jobs_now": ("STABLE", "statement_timestamp()"),
    "jobs_clock": ("VOLATILE", "clock_timestamp()"),
}


def install_clock(*, fake: bool) -> None:
    """Let the database's clock be what a session says, or put the real one back."""
    for name, (kind, real) in _FUNCTIONS.items():
        body = CLOCK.format(real=real) if fake else real
        sql(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS timestamptz LANGUAGE sql {kind} PARALLEL SAFE AS"
            f" $$SELECT {body}$$"
        )


def at(seconds: int) -> dt.datetime:
    """Return a time of the model's clock."""
    return START + dt.timedelta(seconds=seconds)


def seconds(when: dt.datetime | None) -> int | None:
    """Return a time of the database on the model's clock; all of them are whole seconds, but for the microseconds that
    tell the stage a new wait.
    """
    if when is None:
        return None
    passed = (when - START).total_seconds()
    assert passed - int(passed) < 0.001, f"{when} is no time of the fake clock"
    return int(passed)


class Actor:
    """One connection, used by one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._now: int | None = None
        self._open: AbstractContextManager[Any] | None = None
        self.backend: int = self._do(lambda: int(sql("SELECT pg_backend_pid()")[0][0]))

    def _do(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result(DEADLINE)

    def _set_clock(self, now: int) -> None:
        if now != self._now:
            sql("SELECT set_config('model.now', %s, false)", at(now).isoformat())
            self._now = now

    def run(self, work: Callable[[], T], *, now: int) -> T:
        """Do something that commits at once."""
        return self.start(work, now=now).result(DEADLINE)

    def start(self, work: Callable[[], T], *, now: int) -> Future[T]:
        """Begin something that has to wait for somebody else."""

        def task() -> T:
            self._set_clock(now)
            return work()

        return self._thread.submit(task)

    def hold(self, work: Callable[[], T], *, now: int) -> T:
        """Do something in a transaction that stays open."""

        def task() -> T:
            self._set_clock(now)
            self._open = transaction.atomic()
            self._open.__enter__()
            return work()

        return self._do(task)

    def end(self, *, commit: bool) -> None:
        """End the open transaction."""

        def task() -> None:
            assert self._open is not None
            scope, self._open = self._open, None
            transaction.set_rollback(not commit)
            scope.__exit__(None, None, None)

        if self._open is not None:
            self._do(task)

    def waits(self, task: Future[T]) -> bool:
        """Return True as soon as this connection waits for a lock, False when the task ended without waiting.

        Asked from the caller's connection.
        """
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until:
            if task.done():
                return False
            if sql("SELECT cardinality(pg_blocking_pids(%s)) > 0", self.backend) == [(True,)]:
                return True
        raise AssertionError(f"{self.name} neither waits nor ends")

    def leave(self) -> None:
        """Close the connection and end the thread."""
        self.end(commit=False)
        self._do(lambda: connection.close())
        self._thread.shutdown()
