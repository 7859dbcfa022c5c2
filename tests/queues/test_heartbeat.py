"""What the process beside each worker does in one beat."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from uuid import UUID

import pytest
from django.db import OperationalError

from queues import broker, lifecycle
from queues.lifecycle import Run
from queues.models import WorkerProcess
from queues.runtime import heartbeat
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable, Slot
from queues.states import JobState, Reason
from tests.factories import accept, claim, get, lose_lease, make_type, sql

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def kind(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type()


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


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that could be a body's."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def hold(heart: Heart, run: Run, clock: Clock, *, pid: int | None = None) -> Slot:
    """Note a run in hand of this process or another one."""
    slot = heart.table.take_slot()
    slot.hold(run.id, run.fence, 15, since=clock.now)
    if pid is not None:
        [offset] = [o for p, o in heart.table.slots() if p == os.getpid()]
        struct.pack_into("<q", heart.table._map, offset, pid)
    return slot


def _lapsed(job_id: UUID) -> bool:
    return lifecycle.lost(limit=10) == [job_id]


def test_only_old_leases_are_extended(heart: Heart, clock: Clock) -> None:
    """Scenario 4: a short run costs no beat; one older than a third of its lease does."""
    [run] = claim(accept())
    hold(heart, run, clock)
    lose_lease(run.id)
    clock.now += 4.9
    heart.beat()
    assert _lapsed(run.id)
    clock.now += 0.2
    heart.beat()
    assert not _lapsed(run.id)
    [held] = heart.table.held()
    assert held.renewed_at == clock.now


def test_a_cancel_reaches_the_body(heart: Heart, clock: Clock) -> None:
    """I-31: within a third of a lease, the body sees that somebody asked it to stop."""
    [run] = claim(accept())
    slot = hold(heart, run, clock)
    lifecycle.cancel([run.id], reason=Reason.OPERATOR)
    clock.now += 6
    heart.beat()
    assert slot.told_to_stop(run.id, run.fence)


def test_a_superseded_run_is_told_to_stop(heart: Heart, clock: Clock) -> None:
    """I-09: its successor's lease is not touched."""
    [run] = claim(accept())
    slot = hold(heart, run, clock)
    lose_lease(run.id)
    lifecycle.rescue([run.id])
    [successor] = claim([run.id])
    before = get(run.id).due_at
    clock.now += 6
    heart.beat()
    assert slot.told_to_stop(run.id, run.fence)
    assert (get(run.id).due_at, get(run.id).fence) == (before, successor.fence)


def test_the_death_of_a_body_is_reported_at_once(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """I-14: its runs are due again in the same beat, and its slot is free; a neighbour's runs go on."""
    dead, living = claim(accept(2))
    hold(heart, dead, clock, pid=child.pid)
    hold(heart, living, clock)
    child.kill()
    child.wait()
    heart.beat()
    assert (get(dead.id).state, get(living.id).state) == (JobState.RETRYING, JobState.PROCESSING)
    assert [h.id for h in heart.table.held()] == [living.id]


def test_a_body_that_dies_during_the_beat_is_reported_by_the_next(
    heart: Heart, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-14: its slot is not given away before its runs were reported."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=2**22)
    looks = iter([True])
    monkeypatch.setattr(heartbeat, "alive", lambda pid: next(looks, False))
    heart.beat()
    heart.beat()
    assert get(run.id).state == JobState.RETRYING


def test_a_death_is_reported_again_when_the_database_did_not_answer(
    heart: Heart, clock: Clock, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-16: the slot is kept until the report went through."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=child.pid)
    child.kill()
    child.wait()

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(lifecycle, "rescue", fail)
        with pytest.raises(OperationalError):
            heart.beat()
    heart.beat()
    assert get(run.id).state == JobState.RETRYING


def test_a_body_that_lost_its_lease_is_stopped(heart: Heart, clock: Clock, child: subprocess.Popen[bytes]) -> None:
    """I-08: not renewed for two thirds of a lease: the process is killed before its successor may begin."""
    [run] = claim(accept())
    hold(heart, run, clock, pid=child.pid)
    clock.now += 9.9
    heart.stop_what_is_lost()
    assert child.poll() is None
    clock.now += 0.2
    heart.stop_what_is_lost()
    assert child.wait(10) == -9
    heart.stop_what_is_lost()


def test_a_worker_reports_itself_and_signs_off(heart: Heart, clock: Clock) -> None:
    """Every two seconds; afterwards nobody counts its slots any more."""
    heart.beat()
    [row] = WorkerProcess.objects.all()
    assert (row.id, row.kind, row.queues, row.slots, row.busy) == (f"node/{heart.parent}", "worker", ["tier2"], 2, 0)
    sql("UPDATE queues_workerprocess SET slots = 0")
    clock.now += 1.9
    heart.beat()
    assert WorkerProcess.objects.get().slots == 0
    clock.now += 0.2
    heart.beat()
    assert WorkerProcess.objects.get().slots == 2
    heart._sign_off()
    assert not WorkerProcess.objects.exists()


def test_it_ends_with_its_worker_but_after_its_bodies(heart: Heart, clock: Clock) -> None:
    """Orphans are waited for, not for ever."""
    assert not heart._finished()
    heart.parent = 1 if os.getppid() != 1 else 2
    [run] = claim(accept())
    slot = hold(heart, run, clock)
    assert not heart._finished()
    clock.now += heartbeat.ORPHAN_SECONDS + 1
    assert heart._finished()
    slot.drop(run.id, run.fence)
