"""What a review proved of the stage: a fast type's backlog kept the queue's gate shut for a new type."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from uuid import UUID

import pytest

from queues import broker, lifecycle
from queues.histogram import bucket_of
from queues.scheduler import stage as module
from queues.scheduler.stage import Stage, pace_of
from tests.factories import TYPE, accept, confirmed, fold_all, make_type, put_buckets, sql

pytestmark = pytest.mark.django_db
FAST = {bucket_of(0.01): 100}
WINDOW = pace_of(FAST).messages_per_slot


class Wire:
    """A broker with one queue, and consumers that keep it half full; the time that the stage goes by."""

    def __init__(self) -> None:
        self.waiting: deque[list[UUID]] = deque()
        self.published: set[UUID] = set()
        self.now = time.monotonic()

    def monotonic(self) -> float:
        """Stand in for the module `time`."""
        return self.now

    def depth(self, queue: str, *, max_age: float = 0.2) -> int:
        """Return how many messages wait."""
        assert queue == "tier2"
        return len(self.waiting)

    def publish(self, hints: Iterable[tuple[str, list[UUID]]]) -> bool:
        """Take hints."""
        for _, ids in hints:
            self.waiting.append(ids)
            self.published |= set(ids)
        return True

    def consume(self) -> None:
        """Run what waits, oldest first, until half of the window is left."""
        while len(self.waiting) > WINDOW // 2:
            runs = lifecycle.claim(self.waiting.popleft(), worker="test/1.1")
            lifecycle.settle([confirmed(run, seconds=0.01) for run in runs])

    def rounds(self, stage: Stage, n: int) -> None:
        """Let the stage go round as it does, four times a second."""
        for _ in range(n):
            stage.run_once()
            self.consume()
            self.now += 0.25


@pytest.fixture
def wire(db: None, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """A fast type with a history, and with more work than a test can do."""
    made = Wire()
    monkeypatch.setattr(broker, "depth", made.depth)
    monkeypatch.setattr(broker, "publish", made.publish)
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    monkeypatch.setattr(module, "time", made)
    make_type()
    put_buckets(TYPE, "run", FAST)
    accept(500)
    accept(500)
    fold_all()
    return made


@pytest.mark.parametrize("folded", [False, True])
def test_a_fast_backlog_does_not_keep_the_gate_shut_for_a_new_type(wire: Wire, folded: bool) -> None:
    """Scenario 10, I-21: the queue is never less than half full of fast work, which is more than the whole window of a
    type without history; its jobs are published within a few rounds all the same, and the fast type goes on."""
    stage = Stage()
    wire.rounds(stage, 4)
    assert len(wire.waiting) == WINDOW // 2, "the fast type keeps its consumers busy"
    assert wire.published
    make_type("new.job")
    new = set(accept(3, kind="new.job"))
    if folded:
        fold_all()
    before = len(wire.published)
    wire.rounds(stage, 6)
    assert new <= wire.published
    assert len(wire.published - new) > before
    assert sql("SELECT count(*) FROM queues_job WHERE type = 'new.job' AND state = 'confirmed'") != [(0,)]
