"""What awaits its proof: publish due checks, end waits past their deadline, match callbacks that came early."""

import datetime as dt
import itertools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from queues import broker, confirmation, contracts, lifecycle, workers
from queues.contracts import Contract
from queues.faults import fault

BATCH: Final = 500
SLOTS_SHARE: Final = 4
"""Of a queue's slots at most one in so many asks checks at a time: work goes first."""
HINT_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 0.04
LOOK_SECONDS: Final = 120.0
"""How far back callbacks and references are matched again; the first time, as far as callbacks are kept."""
_READ_EVERY: Final = 1.0


def end_waits() -> bool:
    """End one batch of waits whose deadline passed."""
    ids = lifecycle.overdue(limit=BATCH)
    if not ids:
        return False
    fault("give_up.selected")
    return bool(lifecycle.give_up_waiting(ids)) and len(ids) == BATCH


@dataclass
class Matching:
    """The service that looks again for what crossed. Its memory: how far it is, and whether it was once at the end."""

    caught_up: bool = False
    after: int = 0
    looked_at: float = float("-inf")

    def run_once(self) -> bool:
        """Look again for the jobs of callbacks that matched none."""
        if time.monotonic() - self.looked_at > LOOK_SECONDS / 2:
            # Nobody looked for a while, or the database was away: what came meanwhile may be older than the window.
            self.caught_up, self.after = False, 0
        within = LOOK_SECONDS if self.caught_up else float(confirmation.KEEP_LEAST)
        last = confirmation.match_again(within_seconds=within, after=self.after, limit=BATCH)
        self.after = last or 0
        self.caught_up = self.caught_up or last is None
        self.looked_at = time.monotonic()
        return last is not None


@dataclass
class Checks:
    """The service's memory: which checks it sent a hint for and that have not answered so far."""

    sent: dict[UUID, tuple[str, float, dt.datetime]] = field(default_factory=dict)
    """Job → (queue, when its hint was sent, the due time that it was sent for)."""
    read_at: float = float("-inf")
    active: bool = False
    slots: Mapping[str, int] = field(default_factory=dict)
    turn: int = 0

    def run_once(self) -> bool:
        """Publish hints for due checks, as many as may be under way. True: look again soon, some are under way."""
        if time.monotonic() - self.read_at > _READ_EVERY:
            self.active, self.slots = workers.is_first_scheduler(), workers.slots_by_queue()
            self.read_at = time.monotonic()
        if not self.active:
            return False
        self._forget()
        current = contracts.all_current()
        rooms = self._rooms(current)
        walk = [(name, rooms[c.queue] + len(self.sent)) for name, c in current.items() if rooms.get(c.queue, 0) > 0]
        due = lifecycle.due_checks(walk) if walk else {}
        chosen = self._choose(due, current, rooms)
        hints = [(current[name].queue, [job_id]) for name, job_id, _ in chosen]
        if hints and broker.publish(hints, task=broker.CHECK_TASK):
            now = time.monotonic()
            self.sent.update({job_id: (current[name].queue, now, at) for name, job_id, at in chosen})
        if self.sent:
            # Quick ones make room for the next at once; a quarter of a second later would be eight in a second.
            threading.Event().wait(AGAIN_SECONDS)
        return bool(self.sent)

    def _forget(self) -> None:
        """Forget checks that have answered; and hints that were not claimed in time, which are sent again."""
        if not self.sent:
            return
        asked, horizon = lifecycle.asked_checks(list(self.sent)), time.monotonic() - HINT_SECONDS
        self.sent = {
            job_id: was for job_id, was in self.sent.items() if job_id in asked and (asked[job_id] or was[1] > horizon)
        }

    def _rooms(self, current: Mapping[str, Contract]) -> dict[str, int]:
        """Return how many more checks each queue may have under way; none where no worker is."""
        rooms = {}
        for queue in {contract.queue for contract in current.values()}:
            slots = self.slots.get(queue, 0)
            under_way = sum(1 for was in self.sent.values() if was[0] == queue)
            rooms[queue] = max(1, slots // SLOTS_SHARE) - under_way if slots else 0
        return rooms

    def _choose(
        self,
        due: Mapping[str, list[tuple[UUID, dt.datetime]]],
        current: Mapping[str, Contract],
        rooms: dict[str, int],
    ) -> list[tuple[str, UUID, dt.datetime]]:
        """Take the checks that fit, type by type in turn, so that none is kept out by another one's backlog."""
        names = sorted(due)
        self.turn += 1
        start = self.turn % len(names) if names else 0
        chosen = []
        for row in itertools.zip_longest(*(due[name] for name in names[start:] + names[:start])):
            for name, found in zip(names[start:] + names[:start], row, strict=True):
                queue = current[name].queue
                was = self.sent.get(found[0]) if found else None
                if found and rooms[queue] > 0 and (was is None or was[2] < found[1]):
                    rooms[queue] -= 1
                    chosen.append((name, *found))
        return chosen
