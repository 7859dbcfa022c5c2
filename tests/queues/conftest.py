"""Handlers and checks that do what a test says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from queues import broker, handlers
from tests.factories import TYPE, make_type
from tests.queues.reviewed import World


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Handler and check of the type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    world = World()
    handlers.handler(TYPE)(world.handle)
    handlers.check(TYPE)(world.check)
    yield world
    handlers._handlers.pop(TYPE)
    handlers._checks.pop(TYPE, None)


@pytest.fixture
def world(db: None, made: World) -> World:
    """The same in a transaction that is rolled back."""
    return made


@pytest.fixture
def committed(transactional_db: None, made: World) -> World:
    """Handler and check with real commits: steps are refused inside a transaction."""
    make_type(backoff="fixed", backoff_base_seconds=0.0, hard_limit_seconds=90)
    return made
