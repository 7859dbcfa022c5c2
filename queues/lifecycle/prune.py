"""Remove what nobody needs any more; what may go and how is in migration 0005, when is `queues.scheduler.prune`'s."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from queues.lifecycle.sql import execute, transition, uuids

STAY_MOST = 5000
"""With more jobs that stay a partition is not swapped: the copy would hold up its writers."""


class Swap(StrEnum):
    """What became of a partition."""

    SWAPPED = "swapped"
    """A small one with the jobs that stay is in its place."""
    DROPPED = "dropped"
    """None stays, so the day has none any more."""
    REFUSED = "refused"
    """Somebody used it and did not end within 100 ms; nothing changed."""
    BUSY = "busy"
    """Another session prunes at this moment."""
    GONE = "gone"
    """There is no such partition, or it is too young."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at the next jobs of a day found. `last` is where the next look begins.

    `may_go` counts the removed ones too. `stay_bytes` is what a copy of those that stay would have to write, about.
    """

    seen: int
    last: UUID | None
    may_go: int
    removed: int
    stay: Sequence[UUID]
    stay_bytes: int


PRUNABLE = "SELECT day FROM jobs_prunable_days() AS day"
PRUNE = """
SELECT seen, last, may_go, removed, stay, stay_bytes
FROM jobs_prune(%(day)s::date, %(after)s::uuid, %(most)s, %(remove)s)
"""
SWAP = "SELECT jobs_prune_swap(%(day)s::date, %(stay)s::uuid[])"

# By the index on keep_until; callbacks have no partitions. An array is made once: a plan may run a subquery that is
# joined many times over, and each time take another batch.
CALLBACKS = """
DELETE FROM queues_callback c WHERE c.id = ANY(ARRAY(
  SELECT id FROM queues_callback WHERE keep_until < jobs_now() ORDER BY keep_until LIMIT %(limit)s
  FOR UPDATE SKIP LOCKED
))
RETURNING c.id
"""


def prunable_days() -> list[dt.date]:
    """Return the days whose partitions may hold something to remove, oldest first."""
    return [row[0] for row in execute(PRUNABLE, {})]


def prune_day(day: dt.date, *, after: UUID | None = None, most: int, remove: bool = False) -> Look | None:
    """Look at the next jobs of a day. None when another session prunes.

    What belongs to those that may go is removed. They themselves go at once with `remove`; without it they wait for a
    swap, apart from those that could be replayed meanwhile.
    """
    rows = transition("prune_day", PRUNE, {"day": day, "after": after, "most": most, "remove": remove})
    seen, last, may_go, removed, stay, stay_bytes = rows[0]
    if seen is None:
        return None
    return Look(seen=seen, last=last, may_go=may_go, removed=removed, stay=stay, stay_bytes=stay_bytes)


def swap_day(day: dt.date, *, stay: Sequence[UUID]) -> Swap:
    """Replace the partition of a day, all of which was looked at, by one with the jobs that stay."""
    return Swap(transition("prune_swap", SWAP, {"day": day, "stay": uuids(stay)})[0][0])


def prune_callbacks(*, limit: int) -> int:
    """Remove callbacks that were kept long enough; returns how many."""
    return len(execute(CALLBACKS, {"limit": limit}))
