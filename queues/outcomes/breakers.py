"""What breakers did over a time: their worst state in each part of it, and the newest changes. Bounded statements.

Not here: how they stand now (`queues.breakers`).
"""

import datetime as dt
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection

from queues.models import Breaker

# Index breaker_flip_at, a range of it for each dependency: one that flaps for a day has thousands of changes, and only
# what each part comes to leaves the database.
_PARTS: Final = """
SELECT d.name, d.state, p.part, p.worst, p.first, p.last FROM queues_dependency d
LEFT JOIN LATERAL (
  SELECT least(floor(extract(epoch FROM f.at - %(since)s) / %(length)s)::integer, %(parts)s - 1) AS part,
    max(array_position(%(worse)s::text[], f.became::text)) AS worst,
    (array_agg(f.was ORDER BY f.at, f.id))[1] AS first, (array_agg(f.became ORDER BY f.at DESC, f.id DESC))[1] AS last
  FROM queues_breakerflip f WHERE f.dependency = d.name AND f.at >= %(since)s AND f.at < %(now)s GROUP BY 1
) AS p ON true
ORDER BY d.name, p.part
"""
_NEWEST: Final = """
SELECT f.id, f.dependency, f.at, f.was, f.became, f.why, f.by FROM queues_dependency d
CROSS JOIN LATERAL (
  SELECT * FROM queues_breakerflip WHERE dependency = d.name AND at >= %(since)s AND at <= %(until)s
  ORDER BY at DESC, id DESC LIMIT %(limit)s
) AS f ORDER BY f.at DESC, f.id DESC LIMIT %(limit)s
"""
_WORSE: Final = (Breaker.CLOSED.value, Breaker.HALF_OPEN.value, Breaker.OPEN.value)
"""States from best to worst."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One change of a breaker; `by` is empty where it was its own."""

    id: int
    dependency: str
    at: dt.datetime
    was: str
    became: str
    why: str
    by: str


def newest_flips(*, since: dt.datetime, until: dt.datetime, limit: int) -> list[Flip]:
    """Return the newest changes of all dependencies in a time, newest first."""
    names = ("id", "dependency", "at", "was", "became", "why", "by")
    rows = _rows(_NEWEST, {"since": since, "until": until, "limit": limit})
    return [Flip(**dict(zip(names, row, strict=True))) for row in rows]


def histories(*, since: dt.datetime, now: dt.datetime, parts: int) -> dict[str, list[str]]:
    """Return the worst state of each breaker in each of so many equal parts of a time, oldest first.

    Without a change in it a breaker was all the time what it is now.
    """
    length = (now - since).total_seconds() / parts
    rows = _rows(_PARTS, {"since": since, "now": now, "length": length, "parts": parts, "worse": list(_WORSE)})
    changed: dict[str, dict[int, tuple[int, str, str]]] = {}
    states: dict[str, str] = {}
    for name, state, part, worst, first, last in rows:
        states[name] = state
        if part is not None:
            changed.setdefault(name, {})[part] = (worst, first, last)
    return {name: _history(changed.get(name, {}), now=state, parts=parts) for name, state in states.items()}


def _history(changed: dict[int, tuple[int, str, str]], *, now: str, parts: int) -> list[str]:
    state = changed[min(changed)][1] if changed else now
    worst = []
    for part in range(parts):
        if part not in changed:
            worst.append(state)
            continue
        position, first, last = changed[part]
        worst.append(max(_WORSE[position - 1], first, key=_WORSE.index))
        state = last
    return worst


def _rows(sql: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
