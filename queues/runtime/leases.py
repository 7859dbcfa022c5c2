"""The shared map of leases in hand: bodies write it, the heartbeat process beside them reads it.

Shape: a header (draining flag), then slots, one for each thread that runs bodies; a slot has the process id of its
owner and up to ENTRIES runs. No lock between writer and reader: a torn entry names a pair (id, fence) that no row
has, which the database ignores. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

SLOTS: Final = 256
ENTRIES: Final = 128
_HEADER: Final = 64
_SLOT_HEADER: Final = 16
_ENTRY: Final = struct.Struct("<16sidfI")  # id, fence, last renewed, lease seconds, generation of this entry
_STOP: Final = struct.Struct("<I")  # the generation that is told to stop: cancelled, or its lease is lost
_VALID_AT: Final = _ENTRY.size + _STOP.size
_RENEWED_AT: Final = 20
_ENTRY_SIZE: Final = 48
_SLOT_SIZE: Final = _SLOT_HEADER + ENTRIES * _ENTRY_SIZE
_PID: Final = struct.Struct("<q")
_SIZE: Final = _HEADER + SLOTS * _SLOT_SIZE


@dataclass(frozen=True, kw_only=True)
class Held:
    """One run in hand, as the heartbeat process sees it."""

    pid: int
    offset: int
    id: UUID
    fence: int
    renewed_at: float
    lease_seconds: float
    generation: int


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
        self._map[0] = 1

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
            for entry in range(ENTRIES):
                at = offset + _SLOT_HEADER + entry * _ENTRY_SIZE
                if self._map[at + _VALID_AT] == 1:
                    raw, fence, renewed_at, lease, generation = _ENTRY.unpack_from(self._map, at)
                    yield Held(
                        pid=pid,
                        offset=at,
                        id=UUID(bytes=raw),
                        fence=fence,
                        renewed_at=renewed_at,
                        lease_seconds=lease,
                        generation=generation,
                    )

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
        struct.pack_into("<d", self._map, held.offset + _RENEWED_AT, at)
        if cancel:
            self.stop(held)

    def stop(self, held: Held) -> None:
        """Tell a body that its run is cancelled or no longer its own.

        The entry may hold another run by now; that one has another generation and does not feel addressed.
        """
        _STOP.pack_into(self._map, held.offset + _ENTRY.size, held.generation)


class Slot:
    """The part of the map that one thread writes."""

    def __init__(self, shared: mmap.mmap, offset: int) -> None:
        self._map = shared
        self._offset = offset
        self._entries: dict[tuple[UUID, int], tuple[int, int]] = {}
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
        _ENTRY.pack_into(self._map, at, job_id.bytes, fence, since, lease_seconds, self._generation)
        self._map[at + _VALID_AT] = 1
        self._entries[(job_id, fence)] = (at, self._generation)

    def drop(self, job_id: UUID, fence: int) -> None:
        """Forget a run: it has ended, or its end can no longer be written."""
        entry = self._entries.pop((job_id, fence), None)
        if entry is not None:
            at = entry[0]
            self._map[at + _VALID_AT] = 0
            self._free.append((at - self._offset - _SLOT_HEADER) // _ENTRY_SIZE)

    def told_to_stop(self, job_id: UUID, fence: int) -> bool:
        """Say whether the heartbeat process saw a cancel, or that the lease is lost."""
        entry = self._entries.get((job_id, fence))
        if entry is None:
            return False
        at, generation = entry
        return bool(_STOP.unpack_from(self._map, at + _ENTRY.size)[0] == generation)


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
