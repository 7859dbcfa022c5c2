"""What awaits its proof: publish due checks, end waits past their deadline, match callbacks that came early."""

import datetime as dt
import time
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from queues import broker, confirmation, contracts, lifecycle

BATCH: Final = 500
CHECKS_MOST: Final = 200
QUEUE_MOST: Final = 64
"""With so many messages waiting, checks wait too: work goes first."""
HINT_SECONDS: Final = 10.0


def end_waits() -> bool:
    """End one batch of waits whose deadline passed."""
    ids = lifecycle.overdue(limit=BATCH)
    return bool(ids) and bool(lifecycle.give_up_waiting(ids)) and len(ids) == BATCH


def match_callbacks() -> bool:
    """Look again for the jobs of callbacks that matched none."""
    return confirmation.apply_pending(limit=BATCH) == BATCH


@dataclass
class Checks:
    """The service's memory: which checks it sent a hint for, and when."""

    sent: dict[UUID, tuple[float, dt.datetime]] = field(default_factory=dict)

    def run_once(self) -> bool:
        """Publish hints for checks that are due."""
        horizon = time.monotonic() - HINT_SECONDS
        self.sent = {job_id: was for job_id, was in self.sent.items() if was[0] > horizon}
        due = lifecycle.due_checks(limit=CHECKS_MOST + len(self.sent))
        fresh = [row for row in due if (was := self.sent.get(row[0])) is None or was[1] < row[2]][:CHECKS_MOST]
        hints = self._with_room([(row[0], row[1]) for row in fresh])
        if not hints or not broker.publish([(queue, [job_id]) for job_id, queue in hints], task=broker.CHECK_TASK):
            return False
        now, when = time.monotonic(), {row[0]: row[2] for row in fresh}
        self.sent.update({job_id: (now, when[job_id]) for job_id, _ in hints})
        return len(fresh) == CHECKS_MOST

    @staticmethod
    def _with_room(due: list[tuple[UUID, str]]) -> list[tuple[UUID, str]]:
        """Return (job, queue) of checks whose queue is not full; a type that is gone has no queue."""
        current = contracts.all_current()
        rooms: dict[str, int] = {}
        hints: list[tuple[UUID, str]] = []
        for job_id, name in due:
            if name not in current:
                continue
            queue = current[name].queue
            if queue not in rooms:
                waiting = broker.depth(queue)
                rooms[queue] = 0 if waiting is None else QUEUE_MOST - waiting
            if rooms[queue] > 0:
                rooms[queue] -= 1
                hints.append((job_id, queue))
        return hints
