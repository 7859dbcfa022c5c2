"""Publish hints for work that is due, in chunks of about 100 ms, about one second of work ahead of the workers."""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from queues import broker, contracts, histogram, lifecycle, outcomes, workers
from queues.contracts import Contract
from queues.faults import fault
from queues.lifecycle import HINT_SECONDS, Ask, Due
from queues.scheduler.stage_limited import LimitedStage

CHUNK_SECONDS: Final = 0.1
CHUNK_MOST: Final = 100
SLOW_P95_SECONDS: Final = 0.05
"""A type at or above this, or without history, goes one id a message."""
HISTORY_LEAST: Final = 20
_READ_EVERY: Final = 1.0
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
    """The service's memory: what it read lately about types and workers, and which hints it sent."""

    read_at: float = float("-inf")
    active: bool = False
    paces: dict[str, Pace] = field(default_factory=dict)
    walks: list[tuple[int, str]] = field(default_factory=list)
    slots: Mapping[str, int] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    """Types that have waiting jobs, as far as folded or seen since."""
    sent: dict[str, dict[UUID, tuple[float, float]]] = field(default_factory=dict)
    """By type: job → (when its hint was sent, the due time that it was sent for)."""
    limited: LimitedStage = field(default_factory=LimitedStage)

    def run_once(self) -> bool:
        """Publish one round. Returns True when there may be more to publish at once."""
        current = contracts.all_current()
        self._read(current)
        if not self.active:
            return False
        room = self._room(current)
        guarded = {name for name in room if current[name].guarded}
        walk: list[Ask] = []
        tiers: dict[str, list[int]] = {}
        for tier, name in self.walks:
            if not room.get(name):
                continue
            if name in guarded and name in self.busy:
                tiers.setdefault(name, []).append(tier)
                continue
            self._forget(name)
            most = room[name] * self._pace(name).chunk + len(self.sent.get(name, ()))
            # Of a limited type one look tells that it has work; the next round asks what its limits let begin.
            walk.append(Ask(tier, name, 1 if name in guarded else most))
        found = lifecycle.stageable(walk) if walk else {}
        fresh = {name: self._fresh(name, rows, room[name]) for name, rows in found.items() if name not in guarded}
        if tiers:
            asked = {name: room[name] * self._pace(name).chunk for name in tiers}
            fresh |= self.limited.due(asked, current=current, tiers=tiers)
        fault("stage.selected")
        self.busy |= found.keys()
        seen = bool(found.keys() & guarded)
        return self._publish({name: rows for name, rows in fresh.items() if rows}, current) or seen

    def _read(self, current: Mapping[str, Contract]) -> None:
        if time.monotonic() - self.read_at < _READ_EVERY:
            return
        self.active = workers.is_first_scheduler()
        self.paces = {name: pace_of(counts) for name, counts in outcomes.run_histograms(current).items()}
        self.slots = workers.slots_by_queue()
        # A type that moved to another tier leaves jobs behind that carry the old one.
        waiting = outcomes.waiting_pairs()
        self.busy = {name for _, name in waiting}
        pairs = {(contract.tier, name) for name, contract in current.items()} | waiting
        self.walks = sorted(pair for pair in pairs if pair[1] in current)
        self.read_at = time.monotonic()

    def _pace(self, name: str) -> Pace:
        return self.paces.get(name, Pace())

    def _room(self, current: Mapping[str, Contract]) -> dict[str, int]:
        """Return messages that each type may publish now: its queue's free room, shared among types with work."""
        by_queue: dict[str, list[str]] = {}
        for name, contract in current.items():
            if not contract.on_hold and contract.breaker != "open":
                by_queue.setdefault(contract.queue, []).append(name)
        room: dict[str, int] = {}
        for queue, names in by_queue.items():
            waiting = broker.depth(queue, max_age=0.0)
            if waiting is not None:
                room |= self._share(names, slots=max(1, self.slots.get(queue, 0)), waiting=waiting)
        return room

    def _share(self, names: Sequence[str], *, slots: int, waiting: int) -> dict[str, int]:
        """Share one queue's room. The gate is the queue's: a fast backlog cannot keep it shut for the others."""
        busy = [name for name in names if name in self.busy] or names
        window = slots * max(self._pace(name).messages_per_slot for name in busy)
        free = window - waiting
        # A round has a price; it waits until half of the window is free.
        if free < max(1, window // 2):
            return {}
        share = -(-free // len(busy))
        # Of slow work never more than its own window at once; a type not known to have work may show one message of it.
        own = {name: slots * self._pace(name).messages_per_slot for name in names}
        return {name: min(share, own[name]) if name in busy else 1 for name in names}

    def _forget(self, name: str) -> None:
        """Forget hints after HINT_SECONDS: what was not claimed by then is published again."""
        sent, horizon = self.sent.get(name, {}), time.monotonic() - HINT_SECONDS
        if sent:
            self.sent[name] = {job_id: was for job_id, was in sent.items() if was[0] > horizon}

    def _fresh(self, name: str, rows: Sequence[Due], messages: int) -> list[Due]:
        """Return rows that no hint of ours is out for; another due time means that the job came back."""
        sent = self.sent.setdefault(name, {})
        fresh = [row for row in rows if (was := sent.get(row.id)) is None or was[1] != row.due_at]
        # What we sent and do not see was claimed; or newer work of a higher priority hides it, and then a second hint
        # for it is sent later and finds nothing to do.
        waiting = {row.id for row in rows}
        self.sent[name] = {job_id: was for job_id, was in sent.items() if job_id in waiting}
        return fresh[: messages * self._pace(name).chunk]

    def _publish(self, found: Mapping[str, Sequence[Due]], current: Mapping[str, Contract]) -> bool:
        hints: list[tuple[str, list[UUID]]] = []
        for name, rows in found.items():
            queue = current[name].queue
            hints += [(queue, [row.id]) for row in rows if row.alone]
            chunk = self._chunk(current[name], len(rows))
            hints += [(queue, ids) for ids in _chunks((row.id for row in rows if not row.alone), chunk)]
        if not hints or not broker.publish(hints):
            return False
        now = time.monotonic()
        for name, rows in found.items():
            if current[name].guarded:
                self.limited.published(name, rows)
            else:
                self.sent[name].update({row.id: (now, row.due_at) for row in rows})
        return True

    def _chunk(self, contract: Contract, rows: int) -> int:
        """Return how many ids go into one message."""
        # A lost worker makes dead letters of a whole chunk where the contract says dead; order has one head a group.
        if contract.on_worker_lost == "dead" or contract.ordered:
            return 1
        chunk = self._pace(contract.name).chunk
        if contract.guarded:
            # What a limit lets run at once shall run at once, not one after the other in one worker.
            chunk = min(chunk, -(-rows // max(1, self.slots.get(contract.queue, 0))))
        return max(1, chunk)


def _chunks(ids: Iterable[UUID], size: int) -> Iterable[list[UUID]]:
    iterator = iter(ids)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
