"""What the stage publishes, when, and how much at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import pytest

from queues import broker, contracts, lifecycle
from queues.histogram import bucket_of
from queues.models import JobType
from queues.scheduler import stage as module
from queues.scheduler.stage import HISTORY_LEAST, Pace, Stage, pace_of
from tests.factories import TYPE, accept, claim, failed, fold_all, make_type, put_buckets, released, set_columns, sql

pytestmark = pytest.mark.django_db


class Wire:
    """A broker as the stage sees it, and the time that it goes by."""

    def __init__(self) -> None:
        self.depths: dict[str, int | None] = {}
        self.hints: list[tuple[str, list[UUID]]] = []
        self.up = True
        self.now = time.monotonic()

    def depth(self, queue: str, *, max_age: float = 0.2) -> int | None:
        """Return how many messages wait."""
        return self.depths.get(queue, 0)

    def publish(self, hints: list[tuple[str, list[UUID]]]) -> bool:
        """Take hints, if it is up."""
        if self.up:
            self.hints += hints
        return self.up

    def taken(self) -> list[list[UUID]]:
        """Return the ids of the messages so far, and forget them."""
        hints, self.hints = self.hints, []
        return [ids for _, ids in hints]


class _Time:
    def __init__(self, wire: Wire) -> None:
        self.monotonic: Callable[[], float] = lambda: wire.now


@pytest.fixture
def wire(db: None, monkeypatch: pytest.MonkeyPatch) -> Wire:
    made = Wire()
    monkeypatch.setattr(broker, "depth", made.depth)
    monkeypatch.setattr(broker, "publish", made.publish)
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    monkeypatch.setattr(module, "time", _Time(made))
    make_type()
    return made


def change_type(**values: object) -> None:
    JobType.objects.filter(name=TYPE).update(**values)
    contracts.forget()


def history(seconds: float, n: int = HISTORY_LEAST) -> None:
    """Let a type have run before."""
    put_buckets(TYPE, "run", {bucket_of(seconds): n})


@pytest.mark.parametrize(
    ("counts", "chunk"),
    [
        ({}, 1),
        ({bucket_of(0.001): HISTORY_LEAST - 1}, 1),
        ({bucket_of(0.001): HISTORY_LEAST}, 100),
        ({bucket_of(0.01): 100}, 10),
        ({bucket_of(0.049): 100}, 2),
        ({bucket_of(0.06): 100}, 1),
        ({bucket_of(30.0): 100}, 1),
        ({bucket_of(0.001): 94, bucket_of(1.0): 6}, 1),
    ],
)
def test_a_chunk_takes_about_a_tenth_of_a_second(counts: dict[int, int], chunk: int) -> None:
    """DESIGN 3: a type without history, or with a p95 over 50 ms, goes one id a message."""
    found = pace_of(counts)
    assert abs(found.chunk - chunk) <= chunk * 0.1
    assert 1 <= found.chunk <= 100
    assert 3 <= found.messages_per_slot <= 20


def test_what_is_due_is_published_once(wire: Wire) -> None:
    """Best first, one id a message without history; a second round finds nothing new."""
    low, high, later = accept()[0], accept(priority=5)[0], accept()[0]
    set_columns(later, raw_due_at="jobs_now() + interval '1 h'")
    fold_all()
    stage = Stage()
    assert stage.run_once()
    assert wire.hints == [("tier2", [high]), ("tier2", [low])]
    wire.taken()
    assert not stage.run_once()
    assert wire.taken() == []


def test_a_hint_that_nobody_claimed_is_sent_again(wire: Wire) -> None:
    """I-21, I-01: after ten seconds by the same stage, at once by one that was just started."""
    [job] = accept()
    stage = Stage()
    stage.run_once()
    wire.taken()
    wire.now += 9.5
    stage.run_once()
    assert wire.taken() == []
    wire.now += 0.6
    stage.run_once()
    assert wire.taken() == [[job]]
    Stage().run_once()
    assert wire.taken() == [[job]]


def test_a_job_that_came_back_is_published_at_once(wire: Wire) -> None:
    """Released or failed a moment ago: it has a later due time than the hint was sent for."""
    [job] = accept()
    stage = Stage()
    stage.run_once()
    [run] = claim([job])
    lifecycle.settle([released(run)])
    stage.run_once()
    [run] = claim([job])
    lifecycle.settle([failed(run, retry_in=0.0)])
    stage.run_once()
    assert wire.taken() == [[job]] * 3


def test_a_hint_that_did_not_leave_is_not_remembered(wire: Wire) -> None:
    """The broker was down for a moment."""
    [job] = accept()
    stage = Stage()
    wire.up = False
    assert not stage.run_once()
    wire.up = True
    stage.run_once()
    assert wire.taken() == [[job]]


def test_no_broker_no_hints(wire: Wire) -> None:
    """A depth that is not known means no room, not all the room."""
    accept()
    wire.depths["tier2"] = None
    assert not Stage().run_once()
    assert wire.taken() == []


def test_only_what_a_claim_would_take_is_published(wire: Wire) -> None:
    """Scenario 10: a paused type is left alone; its neighbours are not."""
    make_type("other.job")
    accept(3)
    [other] = accept(kind="other.job")
    change_type(paused=True)
    Stage().run_once()
    assert wire.taken() == [[other]]
    [stale] = accept(kind="other.job")
    set_columns(stale, raw_expires_at="jobs_now() - interval '1 s'")
    Stage().run_once()
    assert wire.taken() == [[other]]


def test_a_full_queue_is_left_alone(wire: Wire) -> None:
    """About one second of work waits in the broker; the rest stays in PostgreSQL."""
    accept(50)
    stage = Stage()
    stage.run_once()
    assert 1 <= len(wire.taken()) <= Pace().messages_per_slot
    wire.depths["tier2"] = Pace().messages_per_slot
    wire.now += 20
    stage.run_once()
    assert wire.taken() == []


def test_a_backlog_of_one_type_does_not_starve_another(wire: Wire) -> None:
    """Scenario 10: each type has its share of the queue, whatever the other's backlog is."""
    accept(200)
    make_type("other.job")
    [other] = accept(kind="other.job")
    Stage().run_once()
    assert [other] in wire.taken()


def test_a_type_whose_work_is_not_folded_yet_is_found(wire: Wire) -> None:
    """It shows one message of it at first, and has its share in the next round: no round waits for the rollups."""
    ids = accept(3)
    stage = Stage()
    stage.run_once()
    stage.run_once()
    assert sorted(i for hint in wire.taken() for i in hint) == ids


def test_a_fast_type_goes_in_chunks(wire: Wire) -> None:
    """Ten milliseconds a job: about ten ids a message, each id once."""
    history(0.01, 100)
    ids = accept(40)
    fold_all()
    Stage().run_once()
    chunks = wire.taken()
    assert sorted(i for chunk in chunks for i in chunk) == ids
    assert {len(chunk) for chunk in chunks[:-1]} <= {9, 10, 11}


def test_a_job_to_run_alone_goes_alone(wire: Wire) -> None:
    """Scenario 5: after a lost worker, and wherever a lost worker means the end."""
    history(0.001, 1000)
    ids = accept(5)
    set_columns(ids[2], alone=True)
    Stage().run_once()
    assert sorted(map(len, wire.taken())) == [1, 4]
    change_type(on_worker_lost="dead")
    Stage().run_once()
    assert sorted(map(len, wire.taken())) == [1] * 5


def test_a_job_of_another_tier_is_found(wire: Wire) -> None:
    """A type that moved to another tier leaves jobs behind that carry the old one."""
    [old] = accept()
    lifecycle.fold()
    change_type(tier_id=1)
    [new] = accept()
    Stage().run_once()
    hints = {ids[0]: queue for queue, ids in wire.hints}
    assert hints == {old: "tier1", new: "tier1"}


def test_a_pool_has_a_queue_of_its_own(wire: Wire) -> None:
    """tier2.slow, if the contract says so."""
    change_type(pool="slow")
    accept()
    Stage().run_once()
    assert [queue for queue, _ in wire.hints] == ["tier2.slow"]


def test_what_accept_published_is_left_to_its_hint(wire: Wire) -> None:
    """Scenario 20: a direct hint is not doubled; after ten seconds it counts as lost."""
    [job] = accept()
    set_columns(job, raw_published_at="accepted_at")
    stage = Stage()
    stage.run_once()
    assert wire.taken() == []
    set_columns(job, raw_published_at="jobs_now() - interval '11 s'")
    stage.run_once()
    assert wire.taken() == [[job]]


def test_a_second_scheduler_keeps_quiet(wire: Wire) -> None:
    """I-22: the oldest publishes; when it is gone the next one does."""
    [job] = accept()
    sql(
        "INSERT INTO queues_workerprocess (id, kind, hostname, pid, queues, slots, busy, memory_bytes, started_at,"
        " seen_at)"
        " VALUES ('elsewhere/1', 'scheduler', 'elsewhere', 1, '[]', 0, 0, 0, jobs_now() - interval '1 h', jobs_now())"
    )
    stage = Stage()
    assert not stage.run_once()
    sql("UPDATE queues_workerprocess SET seen_at = jobs_now() - interval '6 s'")
    wire.now += 2
    assert stage.run_once()
    assert wire.taken() == [[job]]
