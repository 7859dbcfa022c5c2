"""Hints while the database is away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from django.db import InterfaceError, OperationalError

from queues import lifecycle, tasks, worker_process
from queues.runtime import chunk
from queues.runtime.chunk import Runner
from queues.runtime.leases import LeaseTable


@pytest.mark.django_db
@pytest.mark.parametrize("error", [OperationalError("the server closed the connection"), InterfaceError("closed")])
def test_a_hint_waits_while_the_database_is_away(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line and a pause for each, so that an outage does not burn all hints and floods no log."""
    waited: list[float] = []

    def away(ids: Sequence[UUID], *, worker: str, checked: Sequence[str]) -> list[lifecycle.Run]:
        raise error

    monkeypatch.setattr(lifecycle, "claim", away)
    monkeypatch.setattr(chunk, "_give_back", lambda ids, worker: None)
    runner = Runner(LeaseTable(), node="test")
    monkeypatch.setattr(worker_process, "runner", lambda: runner)
    monkeypatch.setattr(tasks, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=waited.append)))
    with caplog.at_level(logging.WARNING):
        tasks.run([str(uuid4())])
    assert waited == [tasks.DATABASE_PAUSE]
    assert [record.name for record in caplog.records] == ["queues.tasks"]


def test_a_claim_that_was_never_sent_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-03: without a connection there is nothing to give back."""
    asked: list[str] = []

    class Unconnected:
        """A connection that could not be made."""

        connection = None

        def close(self) -> None:
            """Nothing is open."""

    def away(ids: Sequence[UUID], *, worker: str, checked: Sequence[str]) -> list[lifecycle.Run]:
        raise OperationalError("connection refused")

    monkeypatch.setattr(lifecycle, "claim", away)
    monkeypatch.setattr(chunk, "connection", Unconnected())
    monkeypatch.setattr(chunk, "_give_back", lambda ids, worker: asked.append(worker))
    with pytest.raises(OperationalError):
        Runner(LeaseTable(), node="test").run([uuid4()])
    assert asked == []
