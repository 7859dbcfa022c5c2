"""The shared map of leases in hand."""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import uuid4

import pytest

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
