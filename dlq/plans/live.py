"""Whether live work of a plan's queues is taken in time: a plan waits while it is not.

One look at the front of each type's line, by the staging index; nothing is counted.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, Final

from django.db import connection

from queues import contracts, outcomes

BEHIND_SECONDS: Final = 5.0
"""Live work that is due for longer means that there is no room for more."""

KEEP_SECONDS: Final = 1.0
"""So old an answer may be: planning the look costs more than the look."""
_asked: Final[dict[frozenset[str], tuple[float, str]]] = {}

_OLDEST: Final = """
SELECT w.type, extract(epoch FROM jobs_now() - j.due_at)::float8
FROM unnest(%(tiers)s::smallint[], %(types)s::text[]) AS w (tier, type) CROSS JOIN LATERAL (
  SELECT due_at FROM queues_job
  WHERE state IN ('accepted', 'retrying') AND tier = w.tier AND type = w.type AND priority > %(slower)s
  ORDER BY priority DESC, due_at LIMIT 1) AS j
WHERE j.due_at < jobs_now() - make_interval(secs => %(behind)s)
ORDER BY 2 DESC LIMIT 1
"""


def behind(queues: Collection[str], *, slower_than: int) -> str:
    """Return which live work waits in these queues, in words; empty when it is taken in time.

    `slower_than`: work of this priority and below is not live.
    """
    asked = _asked.get(frozenset(queues))
    if asked is not None and time.monotonic() - asked[0] < KEEP_SECONDS:
        return asked[1]
    words = _behind(queues, slower_than=slower_than)
    _asked[frozenset(queues)] = (time.monotonic(), words)
    return words


def forget() -> None:
    """Forget what was seen a moment ago."""
    _asked.clear()


def _behind(queues: Collection[str], *, slower_than: int) -> str:
    live = {
        name: one.tier
        for name, one in contracts.all_current().items()
        if one.queue in queues and one.enabled and not one.on_hold
    }
    if not live:
        return ""
    # A type that moved to another tier leaves jobs behind that carry the old one; its workers take them all the same.
    older = {(tier, name) for tier, name in outcomes.waiting_pairs() if name in live}
    pairs = sorted(older | {(tier, name) for name, tier in live.items()})
    params: dict[str, Any] = {
        "tiers": [tier for tier, _ in pairs], "types": [name for _, name in pairs], "slower": slower_than,
        "behind": BEHIND_SECONDS,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(_OLDEST, params)
        row = cursor.fetchone()
    return "" if row is None else f"Live work comes first: {row[0]} is due for {row[1]:.0f} s"[:300]
