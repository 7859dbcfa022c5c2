"""What the scenarios share: no broker, handlers that are forgotten again, a client with a key, a session that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import transaction

from jobsboard.api import keys
from jobsboard.models import SCOPES
from queues import broker, handlers, outside
from tests.api.conftest import Api
from tests.concurrency.rivals import DEADLINE, Rival


@pytest.fixture
def _isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No broker, and handlers that are forgotten. By monkeypatch, so that what a test replaces is undone in order."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    monkeypatch.setattr(broker, "publish", lambda hints, *, task=broker.TASK: True)
    # Nobody is there who would answer what is asked before a replay.
    monkeypatch.setattr(outside, "ask_and_wait", lambda ids, **_: {})
    known, asked = dict(handlers._handlers), dict(handlers._checks)
    yield
    for kept, now in ((known, handlers._handlers), (asked, handlers._checks)):
        now.clear()
        now.update(kept)  # type: ignore[arg-type]


@pytest.fixture
def world(db: None, _isolated: None) -> None:
    """A database that is rolled back, no broker, no handlers of other tests."""


@pytest.fixture
def committed(transactional_db: None, _isolated: None) -> None:
    """The same with real commits, for scenarios of two sessions."""


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    """Return a maker of clients with keys of chosen rights."""

    def make(scopes: tuple[str, ...] = SCOPES, type_patterns: tuple[str, ...] = ("*",)) -> Api:
        return Api(keys.issue_key(label="scenario", scopes=scopes, type_patterns=type_patterns)[1])

    keys.forget_cached()
    yield make
    keys.forget_cached()


@contextmanager
def open_transaction(work: Callable[[], object], *, roll_back: bool = False) -> Iterator[Rival[None]]:
    """Let another session do something and stay in its transaction until the block ends; then it commits."""
    done, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            work()
            done.set()
            assert enough.wait(3 * DEADLINE)
            transaction.set_rollback(roll_back)

    rival = Rival(hold)
    assert done.wait(DEADLINE), rival.error
    try:
        yield rival
    finally:
        enough.set()
        rival.outcome()


def until(condition: Callable[[], object], what: str, *, seconds: float = DEADLINE) -> None:
    """Wait for a condition, and fail with what was waited for."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, what
        threading.Event().wait(0.01)
