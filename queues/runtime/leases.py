"""The shared map of leases in hand: bodies write it, the heartbeat process beside them reads it.

Shape: a header (draining flag), then slots, one for each thread that runs bodies; a slot has the process id of its
owner and up to ENTRIES runs. Times are CLOCK_MONOTONIC, which all processes of a machine share.

No lock between writer and reader. An entry is not valid while a run is put into it, and each run has a generation of
its own; the reader looks twice and takes only what did not change, so it never sees a mix of two runs. What it saw may
be old all the same. The database ignores what is out of date, by the fence. Before a process is killed for a limit,
the entry is looked at again (`unchanged`). Marks (told to stop, overdue) name a generation, so that one that comes late
does not hit the entry's next run.
"""

import fcntl
import itertools
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple
from uuid import UUID

SLOTS: Final = 256
ENTRIES: Final = 128
_HEADER: Final = 64
_HEARD: Final = struct.Struct("<d")
_HEARD_AT: Final = 8
_DRAINED_AT: Final = 16
_SLOT_HEADER: Final = 64
# id, last renewed, began, lease and hard limit in seconds, fence, generation, and the generations that are marked: told
# to stop (cancelled, or its lease is lost), and overdue.
_ENTRY: Final = struct.Struct("<16sddffiIII")
_RENEWED_AT: Final = 16
_BEGAN: Final = 24
_HARD_LIMIT: Final = 36
_STOP: Final = 48
_OVERDUE: Final = 52
_VALID: Final = 56
# One entry is one cache line, so that no number in it is read in two halves.
_ENTRY_SIZE: Final = 64
_SLOT_SIZE: Final = _SLOT_HEADER + ENTRIES * _ENTRY_SIZE
_PID: Final = struct.Struct("<q")
_SECONDS: Final = struct.Struct("<d")
_LIMIT: Final = struct.Struct("<f")
_SIZE: Final = _HEADER + SLOTS * _SLOT_SIZE


class Held(NamedTuple):
    """One run in hand, as the heartbeat process sees it."""

    pid: int
    offset: int
    id: UUID
    fence: int
    renewed_at: float
    lease_seconds: float
    generation: int
    began: float
    """When its body began, 0 when it has not; negated when the body has ended and its end is not written yet."""
    hard_limit: float
    """Seconds; 0 is none."""
    overdue: bool
    """Its hard limit passed, and somebody acts on it: it is nobody's to renew or to rescue."""

    @property
    def pair(self) -> tuple[UUID, int]:
        """The run's name in the database."""
        return self.id, self.fence

    def passed(self, at: float) -> bool:
        """Say whether its body runs and is past its hard limit."""
        return self.began > 0 and 0 < self.hard_limit < at - self.began


class LeaseTable:
    """The map in memory shared through a file descriptor."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("jobsboard-leases") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
        self._map = mmap.mmap(self.fd, _SIZE)
        self._lock = threading.Lock()

    @property
    def draining(self) -> bool:
        """The worker was asked to stop: nothing new may begin."""
        return self._map[0] == 1

    def drain(self) -> None:
        """Tell all bodies of this worker that nothing new may begin."""
        if not self.draining:
            _SECONDS.pack_into(self._map, _DRAINED_AT, now())
        self._map[0] = 1

    def drains_for(self, seconds: float) -> bool:
        """Say whether this worker was asked to stop so long ago."""
        return self.draining and now() - float(_SECONDS.unpack_from(self._map, _DRAINED_AT)[0]) >= seconds

    @property
    def heard_at(self) -> float:
        """When a body of this worker last took a canary from the broker; 0 before the first."""
        return float(_HEARD.unpack_from(self._map, _HEARD_AT)[0])

    def hear(self) -> None:
        """Note that a canary came through."""
        _HEARD.pack_into(self._map, _HEARD_AT, now())

    def take_slot(self) -> "Slot":
        """Return a free slot for the calling thread. Raises: RuntimeError when all are taken."""
        with self._lock:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                for number in range(SLOTS):
                    offset = _HEADER + number * _SLOT_SIZE
                    if _PID.unpack_from(self._map, offset)[0] == 0:
                        _PID.pack_into(self._map, offset, os.getpid())
                        return Slot(self._map, offset)
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)
        raise RuntimeError(f"more than {SLOTS} threads run bodies beside one heartbeat process")

    def held(self) -> Iterator[Held]:
        """Yield every run in hand, also those of dead processes."""
        for pid, offset in self.slots():
            first = offset + _SLOT_HEADER
            valid = self._map[first + _VALID : first + ENTRIES * _ENTRY_SIZE : _ENTRY_SIZE]
            for entry in itertools.compress(range(ENTRIES), valid):
                run = self._read(pid, first + entry * _ENTRY_SIZE)
                if run is not None:
                    yield run

    def _read(self, pid: int, at: int) -> Held | None:
        seen = self._map[at : at + _ENTRY_SIZE]
        while seen[_VALID] == 1 and seen != (again := self._map[at : at + _ENTRY_SIZE]):
            seen = again
        if seen[_VALID] != 1:
            return None
        raw, renewed_at, began, lease, hard_limit, fence, generation, _, overdue = _ENTRY.unpack_from(seen)
        return Held(
            pid, at, UUID(bytes=raw), fence, renewed_at, lease, generation, began, hard_limit, overdue == generation
        )

    def unchanged(self, held: Held) -> bool:
        """Say whether an entry still is what it was: asked before a process is killed for what stands there."""
        return self._read(held.pid, held.offset) == held

    def slots(self) -> Iterator[tuple[int, int]]:
        """Yield (process id, offset) of the slots that are taken."""
        for number in range(SLOTS):
            offset = _HEADER + number * _SLOT_SIZE
            pid = _PID.unpack_from(self._map, offset)[0]
            if pid:
                yield pid, offset

    def free(self, offset: int) -> None:
        """Give back the slot of a dead process."""
        self._map[offset : offset + _SLOT_SIZE] = bytes(_SLOT_SIZE)

    def renewed(self, held: Held, *, at: float, cancel: bool) -> None:
        """Note that a lease was extended, and whether the job is to stop."""
        _SECONDS.pack_into(self._map, held.offset + _RENEWED_AT, at)
        if cancel:
            self.stop(held)

    def stop(self, held: Held) -> None:
        """Tell a body that its run is cancelled or no longer its own.

        The entry may hold another run by now; that one has another generation and does not feel addressed.
        """
        struct.pack_into("<I", self._map, held.offset + _STOP, held.generation)

    def mark_overdue(self, held: Held) -> None:
        """Note that a run passed its hard limit and is stopped for it; the note outlives us and its process."""
        struct.pack_into("<I", self._map, held.offset + _OVERDUE, held.generation)


class Slot:
    """The part of the map that one thread writes."""

    def __init__(self, shared: mmap.mmap, offset: int) -> None:
        self._map = shared
        self._offset = offset
        # By the id's number: an UUID hashes in Python, several times for each job.
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}
        self._generation = 0
        self._free = list(range(ENTRIES - 1, -1, -1))

    @property
    def room(self) -> int:
        """How many more runs this slot can hold."""
        return len(self._free)

    def hold(self, job_id: UUID, fence: int, lease_seconds: float, *, since: float) -> None:
        """Note a run in hand. `since` is the time before its claim was sent, so that the lease is never overrated."""
        entry = self._free.pop()
        at = self._offset + _SLOT_HEADER + entry * _ENTRY_SIZE
        self._generation = self._generation % 0xFFFFFFFF + 1
        _ENTRY.pack_into(self._map, at, job_id.bytes, since, 0.0, lease_seconds, 0.0, fence, self._generation, 0, 0)
        self._map[at + _VALID] = 1
        self._entries[(job_id.int, fence)] = (at, self._generation)

    def begin(self, job_id: UUID, fence: int, *, hard_limit: float) -> None:
        """Note that a body begins now. Until then its process may die without any suspicion that it ran."""
        entry = self._entries.get((job_id.int, fence))
        if entry is not None:
            # `began` last: it is what makes the limit count.
            _LIMIT.pack_into(self._map, entry[0] + _HARD_LIMIT, hard_limit)
            _SECONDS.pack_into(self._map, entry[0] + _BEGAN, now())

    def ended(self, job_id: UUID, fence: int) -> None:
        """Note that a body ended: no limit holds it any more, however long its end takes to be written."""
        entry = self._entries.get((job_id.int, fence))
        if entry is not None:
            at = entry[0] + _BEGAN
            _SECONDS.pack_into(self._map, at, -abs(_SECONDS.unpack_from(self._map, at)[0]))

    def drop(self, job_id: UUID, fence: int) -> None:
        """Forget a run: it has ended, or its end can no longer be written."""
        entry = self._entries.pop((job_id.int, fence), None)
        if entry is not None:
            at = entry[0]
            self._map[at + _VALID] = 0
            self._free.append((at - self._offset - _SLOT_HEADER) // _ENTRY_SIZE)

    def told_to_stop(self, job_id: UUID, fence: int) -> bool:
        """Say whether the heartbeat process saw a cancel, or that the lease is lost."""
        entry = self._entries.get((job_id.int, fence))
        if entry is None:
            return False
        at, generation = entry
        return bool(struct.unpack_from("<I", self._map, at + _STOP)[0] == generation)


def alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def now() -> float:
    """Return CLOCK_MONOTONIC in seconds."""
    return time.monotonic()
