"""Publish hints for work that is due, in chunks of about 100 ms, about one second of work ahead of the workers."""

import itertools
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from queues import broker, contracts, histogram, lifecycle, outcomes, workers
from queues.contracts import Contract

log = logging.getLogger(__name__)

CHUNK_SECONDS: Final = 0.1
CHUNK_MOST: Final = 100
SLOW_P95_SECONDS: Final = 0.05
"""A type at or above this, or without history, goes one id a message."""
HISTORY_LEAST: Final = 20
_READ_EVERY: Final = 2.0
_MESSAGES_LEAST, _MESSAGES_MOST = 3, 20


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How one type is published: ids a message, and how many messages a free slot may have waiting."""

    chunk: int = 1
    messages_per_slot: int = _MESSAGES_LEAST


def pace_of(counts: Mapping[int, int]) -> Pace:
    """Return the pace for a histogram of run times."""
    p95, mean = histogram.quantile(counts, 0.95), histogram.mean(counts)
    if sum(counts.values()) < HISTORY_LEAST or p95 is None or mean is None:
        return Pace()
    chunk = 1 if p95 >= SLOW_P95_SECONDS else max(1, min(CHUNK_MOST, int(CHUNK_SECONDS / mean)))
    waiting = int(1.0 / (chunk * mean))
    return Pace(chunk=chunk, messages_per_slot=max(_MESSAGES_LEAST, min(_MESSAGES_MOST, waiting)))


@dataclass
class Stage:
    """The service's memory: what it read lately about types and workers."""

    read_at: float = float("-inf")
    paces: dict[str, Pace] = field(default_factory=dict)
    walks: list[tuple[int, str]] = field(default_factory=list)
    slots: Mapping[str, int] = field(default_factory=dict)

    def run_once(self) -> bool:
        """Publish one round. Returns True when there may be more to publish at once."""
        current = contracts.all_current()
        self._read(current)
        room = self._room(current)
        if not room:
            return False
        walk = [(tier, name, room[name] * self._pace(name).chunk) for tier, name in self.walks if room.get(name)]
        found = lifecycle.stageable(walk) if walk else {}
        if not found:
            return False
        return self._publish(found, current)

    def _read(self, current: Mapping[str, Contract]) -> None:
        if time.monotonic() - self.read_at < _READ_EVERY:
            return
        self.paces = {name: pace_of(counts) for name, counts in outcomes.run_histograms().items()}
        self.slots = workers.slots_by_queue()
        # A type that moved to another tier leaves jobs behind that carry the old one.
        pairs = {(contract.tier, name) for name, contract in current.items()} | outcomes.waiting_pairs()
        self.walks = sorted(pair for pair in pairs if pair[1] in current)
        self.read_at = time.monotonic()

    def _pace(self, name: str) -> Pace:
        return self.paces.get(name, Pace())

    def _room(self, current: Mapping[str, Contract]) -> dict[str, int]:
        """Return messages that each type may publish now: its queue's free room, shared among its types."""
        by_queue: dict[str, list[str]] = {}
        for name, contract in current.items():
            if not contract.paused:
                by_queue.setdefault(contract.queue, []).append(name)
        room: dict[str, int] = {}
        for queue, names in by_queue.items():
            waiting = broker.depth(queue, max_age=0.0)
            if waiting is None:
                continue
            slots = max(1, self.slots.get(queue, 0))
            for name in names:
                free = slots * self._pace(name).messages_per_slot - waiting
                if free > 0:
                    room[name] = -(-free // len(names)) if len(names) > 1 else free
        return room

    def _publish(self, found: Mapping[str, list[tuple[UUID, bool]]], current: Mapping[str, Contract]) -> bool:
        ours = lifecycle.mark_published([job_id for rows in found.values() for job_id, _ in rows])
        hints: list[tuple[str, list[UUID]]] = []
        for name, rows in found.items():
            queue = current[name].queue
            chunk = 1 if current[name].on_worker_lost == "dead" else self._pace(name).chunk
            hints += [(queue, [job_id]) for job_id, alone in rows if alone and job_id in ours]
            together = (job_id for job_id, alone in rows if not alone and job_id in ours)
            hints += [(queue, ids) for ids in _chunks(together, chunk)]
        if not broker.publish(hints):
            lifecycle.mark_unpublished(sorted(ours))
            return False
        return bool(hints)


def _chunks(ids: Iterable[UUID], size: int) -> Iterable[list[UUID]]:
    iterator = iter(ids)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
