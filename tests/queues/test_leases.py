"""The shared map of leases in hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Final
from uuid import uuid4

import pytest

from queues.runtime import leases
from queues.runtime.leases import ENTRIES, SLOTS, LeaseTable, alive


def _both() -> tuple[LeaseTable, LeaseTable]:
    """A worker's view and its heartbeat process's view of the same memory."""
    ours = LeaseTable()
    return ours, LeaseTable(ours.fd)


def test_what_a_body_holds_its_heartbeat_sees() -> None:
    """Scenario 4: (id, fence) pairs of a living process, with the time of their last renewal."""
    ours, theirs = _both()
    slot, job = ours.take_slot(), uuid4()
    slot.hold(job, 7, 15, since=100.5)
    [held] = theirs.held()
    assert (held.pid, held.id, held.fence, held.renewed_at, held.lease_seconds) == (os.getpid(), job, 7, 100.5, 15)
    theirs.renewed(held, at=105.0, cancel=False)
    assert [h.renewed_at for h in ours.held()] == [105.0]
    assert not slot.told_to_stop(job, 7)
    slot.drop(job, 6)
    assert list(theirs.held()) != []
    slot.drop(job, 7)
    slot.drop(job, 7)
    assert list(theirs.held()) == []


def test_the_heartbeat_sees_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not begun, running with a limit, ended: no limit holds an end that waits to be written."""
    ours, theirs = _both()
    slot, job = ours.take_slot(), uuid4()
    monkeypatch.setattr(leases, "now", lambda: 200.0)
    slot.hold(job, 1, 15, since=100.0)
    [held] = theirs.held()
    assert (held.began, held.hard_limit, held.passed(1e9)) == (0, 0, False)
    slot.begin(job, 1, hard_limit=60)
    [held] = theirs.held()
    assert (held.began, held.hard_limit, held.passed(260.0), held.passed(260.1)) == (200.0, 60, False, True)
    slot.ended(job, 1)
    slot.ended(job, 1)
    [held] = theirs.held()
    assert (held.began, held.passed(1e9)) == (-200.0, False)
    slot.begin(job, 2, hard_limit=1)
    slot.ended(job, 2)
    slot.drop(job, 1)
    slot.begin(job, 1, hard_limit=1)
    assert list(theirs.held()) == []


def test_without_a_hard_limit_none_passes() -> None:
    """0 is none."""
    ours, theirs = _both()
    slot, job = ours.take_slot(), uuid4()
    slot.hold(job, 1, 15, since=0)
    slot.begin(job, 1, hard_limit=0)
    [held] = theirs.held()
    assert held.began > 0
    assert not held.passed(1e9)


def test_a_mark_is_for_one_run_and_is_seen_by_all() -> None:
    """Overdue is known to the next heartbeat process too; a mark that comes late does not hit the entry's next run."""
    ours, theirs = _both()
    slot, job = ours.take_slot(), uuid4()
    slot.hold(job, 1, 15, since=0)
    slot.begin(job, 1, hard_limit=1)
    [seen] = theirs.held()
    assert theirs.unchanged(seen)
    theirs.mark_overdue(seen)
    assert not theirs.unchanged(seen)
    assert [held.overdue for held in ours.held()] == [True]
    slot.drop(job, 1)
    assert not theirs.unchanged(seen)
    slot.hold(job, 1, 15, since=0)
    assert not theirs.unchanged(seen)
    theirs.mark_overdue(seen)
    assert [held.overdue for held in theirs.held()] == [False]


def test_a_reader_never_sees_a_mix_of_two_runs() -> None:
    """A kill is decided on what stands here: while another process puts runs in and takes them out, whatever is seen
    belongs to one run."""
    table = LeaseTable()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(table.fd)], pass_fds=[table.fd], env={**os.environ, "PYTHONPATH": "."}
    )
    try:
        seen: set[int] = set()
        give_up = time.monotonic() + 20
        while len(seen) < 500 and time.monotonic() < give_up:
            for held in table.held():
                n = held.id.int
                assert (held.fence, held.renewed_at, held.lease_seconds) == (n, float(n), float(n % 1000))
                assert held.hard_limit in (0.0, float(n % 1000))
                seen.add(n)
    finally:
        writer.kill()
        writer.wait()
    assert len(seen) >= 500


WRITER: Final = """
import sys
from uuid import UUID
from queues.runtime.leases import LeaseTable
slot = LeaseTable(int(sys.argv[1])).take_slot()
for n in range(1, 2**31):
    job = UUID(int=n)
    slot.hold(job, n, n % 1000, since=float(n))
    slot.begin(job, n, hard_limit=n % 1000)
    slot.drop(job, n)
"""


def test_a_body_is_told_to_stop() -> None:
    """I-31: a cancel reaches the run that it is for, no other."""
    ours, theirs = _both()
    slot, job, other = ours.take_slot(), uuid4(), uuid4()
    for held_id in (job, other):
        slot.hold(held_id, 1, 15, since=0)
    for held in theirs.held():
        if held.id == job:
            theirs.renewed(held, at=1.0, cancel=True)
    assert (slot.told_to_stop(job, 1), slot.told_to_stop(other, 1), slot.told_to_stop(job, 2)) == (True, False, False)


def test_a_late_stop_does_not_hit_the_next_run_of_the_entry() -> None:
    """I-31: the heartbeat looked, the run ended, the next run took its entry: that one is not cancelled."""
    ours, theirs = _both()
    slot, first, second = ours.take_slot(), uuid4(), uuid4()
    slot.hold(first, 1, 15, since=0)
    [seen] = theirs.held()
    slot.drop(first, 1)
    slot.hold(second, 1, 15, since=0)
    theirs.stop(seen)
    assert not slot.told_to_stop(second, 1)
    slot.drop(second, 1)
    slot.hold(first, 1, 15, since=0)
    assert not slot.told_to_stop(first, 1), "the same run again, named by an old look"


def test_a_slot_has_room_for_a_chunk_and_gets_it_back() -> None:
    """Entries are used again; one too many is an error, not another run's entry."""
    slot = LeaseTable().take_slot()
    for _ in range(3):
        ids = [uuid4() for _ in range(ENTRIES)]
        for job in ids:
            slot.hold(job, 1, 15, since=0)
        with pytest.raises(IndexError):
            slot.hold(uuid4(), 1, 15, since=0)
        for job in ids:
            slot.drop(job, 1)


def test_slots_are_taken_once_and_given_back() -> None:
    """One for each thread that runs bodies; a dead process's slot is free again, with nothing in it."""
    ours, theirs = _both()
    slots = [ours.take_slot() for _ in range(SLOTS)]
    with pytest.raises(RuntimeError):
        ours.take_slot()
    slots[3].hold(uuid4(), 1, 15, since=0)
    offset = [offset for _, offset in theirs.slots()][3]
    theirs.free(offset)
    assert list(ours.held()) == []
    assert ours.take_slot() is not None


def test_draining_is_seen_by_all() -> None:
    """I-17: one flag for all bodies of a worker."""
    ours, theirs = _both()
    assert not theirs.draining
    ours.drain()
    assert theirs.draining


def test_a_zombie_is_not_alive() -> None:
    """I-14: a child that was killed and not yet waited for runs nothing."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert alive(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(child.pid)
    child.communicate()
    assert not alive(child.pid)
    assert alive(os.getpid())
