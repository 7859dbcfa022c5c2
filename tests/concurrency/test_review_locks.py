"""What a review proved of locks: one row that another session has locked must not cost its neighbours anything."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from django.db import connection, transaction

from queues import broker, contract_versions, contracts, lifecycle
from queues.lifecycle import Run
from queues.models import JobType
from queues.runtime import heartbeat, leases
from queues.runtime.chunk import write_ends
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable, Slot
from queues.states import JobState
from tests.concurrency.rivals import DEADLINE, Rival
from tests.factories import TYPE, accept, claim, confirmed, get, lose_lease, make_type, set_columns, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]
S = JobState


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type whose first lost run alone is poison; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    made = make_type(poison_after=1)
    contracts.all_current()
    return made


@contextmanager
def locked(*ids: UUID) -> Iterator[None]:
    """Let another session hold rows."""
    has, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            sql("SELECT id FROM queues_job WHERE id = ANY(%s) ORDER BY id FOR UPDATE", list(ids))
            has.set()
            assert enough.wait(2 * DEADLINE)

    rival = Rival(hold)
    assert has.wait(DEADLINE)
    try:
        yield
    finally:
        enough.set()
        rival.outcome()


def _until(condition: Callable[[], bool], what: str, *, seconds: float = DEADLINE) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, what
        threading.Event().wait(0.01)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that wait 200 ms for a lock, also those that are made after a failure."""
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "options", "-c lock_timeout=200ms -c timezone=UTC")
    connection.close()


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_locked_row_does_not_hold_the_ends_of_its_neighbours(place: int, hasty: None) -> None:
    """I-13, I-16: the others are written while the lock is held and long before their leases would have to be given
    up; the locked one is written as soon as it can be."""
    runs = claim(accept(3))
    blocked = runs[place]
    others = [run.id for run in runs if run is not blocked]
    ends, give_up_at = [confirmed(run) for run in runs], leases.now() + 8
    with locked(blocked.id):
        writer = Rival(lambda: write_ends(ends, give_up_at=give_up_at), lock_timeout="200ms")
        _until(lambda: {get(i).state for i in others} == {S.CONFIRMED}, "neighbours wait for the lock", seconds=4)
        assert leases.now() < give_up_at - 3
        assert get(blocked.id).state == S.PROCESSING
    assert writer.outcome() == {(run.id, run.fence) for run in runs}
    assert get(blocked.id).state == S.CONFIRMED


def test_a_heartbeat_passes_by_locked_rows() -> None:
    """I-08: the rest of the batch is renewed; what was skipped is still held, and renewed by the next one."""
    free, busy = claim(accept(2))
    pairs = [(free.id, free.fence), (busy.id, busy.fence)]
    lose_lease(free.id, busy.id)
    sql("SET lock_timeout = '500ms'")
    with locked(busy.id):
        assert lifecycle.heartbeat([(*pair, 15.0) for pair in pairs]) == {pairs[0]: False}
        assert lifecycle.lost(limit=10) == [busy.id]
        assert lifecycle.holding(pairs) == set(pairs)
    assert lifecycle.heartbeat([(*pair, 15.0) for pair in pairs]) == dict.fromkeys(pairs, False)
    assert lifecycle.lost(limit=10) == []


class Clock:
    """CLOCK_MONOTONIC, as far as the heartbeat knows."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(heartbeat, "now", lambda: made.now)
    return made


@pytest.fixture
def heart(clock: Clock) -> Heart:
    return Heart(LeaseTable(), parent=os.getppid(), node="node", queues=["tier2"], slots=2)


def _hold(heart: Heart, run: Run, clock: Clock, *, pid: int | None = None) -> Slot:
    known = {offset for _, offset in heart.table.slots()}
    slot = heart.table.take_slot()
    slot.hold(run.id, run.fence, 15, since=clock.now)
    slot.begin(run.id, run.fence, hard_limit=0.0)
    if pid is not None:
        [offset] = {offset for _, offset in heart.table.slots()} - known
        struct.pack_into("<q", heart.table._map, offset, pid)
    return slot


def test_a_run_whose_row_is_locked_is_not_told_to_stop(heart: Heart, clock: Clock) -> None:
    """I-08, I-09: the heart renews what it can, stops what was superseded, and comes again for what was locked."""
    free, busy, old = claim(accept(3))
    slots = {run.id: _hold(heart, run, clock) for run in (free, busy, old)}
    lose_lease(old.id)
    lifecycle.rescue([old.id], blame=False)
    [successor] = claim([old.id])
    clock.now += 6
    sql("SET lock_timeout = '500ms'")
    with locked(busy.id):
        heart.beat()
    renewed = {held.id for held in heart.table.held() if held.renewed_at == clock.now}
    assert renewed == {free.id}
    assert {run.id for run in (free, busy, old) if slots[run.id].told_to_stop(run.id, run.fence)} == {old.id}
    assert (get(old.id).state, get(old.id).fence) == (S.PROCESSING, successor.fence)
    clock.now += 0.25
    heart.beat()
    assert {held.id for held in heart.table.held() if held.renewed_at == clock.now} == {busy.id}


def test_a_run_that_is_superseded_and_locked_is_told_to_stop(heart: Heart, clock: Clock) -> None:
    """I-09: another's lock on the row is no excuse for a run that does not hold it any more."""
    [run] = claim(accept())
    slot = _hold(heart, run, clock)
    lose_lease(run.id)
    lifecycle.rescue([run.id], blame=False)
    claim([run.id])
    clock.now += 6
    sql("SET lock_timeout = '500ms'")
    with locked(run.id):
        heart.beat()
    assert slot.told_to_stop(run.id, run.fence)


@pytest.mark.parametrize("blame", [True, False])
def test_a_run_that_we_ended_ourselves_is_not_blamed(blame: bool) -> None:
    """I-08, I-14: alone in its chunk and one crash is poison here; without blame it is due again and has no crash."""
    [run] = claim(accept())
    found = lifecycle.rescue([run.id], dead_runs=[(run.id, run.fence)], blame=blame)
    assert found == {run.id: S.DEAD if blame else S.RETRYING}
    assert get(run.id).crashes == int(blame)


@pytest.fixture
def bodies() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that could be a worker's."""
    made = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield made
    for process in made:
        process.kill()
        process.wait()


def test_the_heart_blames_only_what_it_did_not_stop(
    heart: Heart, clock: Clock, bodies: list[subprocess.Popen[bytes]]
) -> None:
    """I-08, I-14: both processes are gone in the same beat; only the one that died by itself counts against its job."""
    [stopped], [crashed] = claim(accept()), claim(accept())
    _hold(heart, stopped, clock, pid=bodies[0].pid)
    clock.now += 10.1
    _hold(heart, crashed, clock, pid=bodies[1].pid)
    heart.stop_what_is_lost()
    assert bodies[0].wait(DEADLINE) == -9
    assert bodies[1].poll() is None
    bodies[1].kill()
    bodies[1].wait()
    heart.beat()
    assert (get(stopped.id).state, get(stopped.id).crashes) == (S.RETRYING, 0)
    assert (get(crashed.id).state, get(crashed.id).crashes) == (S.DEAD, 1)
    assert list(heart.table.slots()) == []


def test_a_type_deleted_beside_an_uncommitted_accept_leaves_no_open_job() -> None:
    """I-13: the deletion cannot see the job; the job has no type, is never claimed, and expires all the same."""
    with transaction.atomic():
        [job_id] = accept()
        Rival(lambda: contract_versions.delete(TYPE, actor="ada", reason="a mistake")).outcome()
    contracts.forget()
    assert not JobType.objects.filter(name=TYPE).exists()
    assert lifecycle.claim([job_id], worker="test/1.1") == []
    set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    assert lifecycle.stale(limit=10) == [job_id]
    assert lifecycle.expire([job_id]) == {job_id: S.EXPIRED}
