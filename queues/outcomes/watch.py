"""What alert rules ask beside the rollups: jobs past their window, due and not begun, queues without workers.

Bounded index probes, whatever there is. Not here: what is too much (`jobsboard.alerts`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection

Pair = tuple[int, str]

LOOK_AT_MOST: Final = 1_000
"""Overdue jobs that are counted of one (tier, type)."""
_OLDEST: Final = 100
"""Of how many of the oldest waiting jobs the longest due is looked for."""

# Index job_open, oldest first. The window is the contract's of now: that of a job is not in the index.
_OVERDUE: Final = """
SELECT w.tier, w.type, (SELECT count(*) FROM (
    SELECT FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation') AND tier = w.tier
      AND type = w.type AND ready_at < jobs_now() - make_interval(secs => w.win) AND NOT probe LIMIT %(most)s) AS late),
  (SELECT min(due_at) FROM (
    SELECT state, due_at FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation')
      AND tier = w.tier AND type = w.type AND ready_at <= jobs_now() ORDER BY ready_at LIMIT %(oldest)s) AS waiting
    WHERE state IN ('accepted', 'retrying') AND due_at <= jobs_now())
FROM unnest(%(tiers)s::smallint[], %(types)s::text[], %(windows)s::integer[]) AS w (tier, type, win)
"""

_QUEUES: Final = """
SELECT q, max(seen_at) FILTER (WHERE trouble = ''),
  coalesce(sum(greatest(slots - busy, 0)) FILTER (
    WHERE trouble = '' AND seen_at > jobs_now() - make_interval(secs => %(gone)s)), 0)
FROM queues_workerprocess CROSS JOIN LATERAL jsonb_array_elements_text(queues) AS q WHERE kind = 'worker' GROUP BY q
"""

# A partition of jobs is named by its day.
_GROUND: Final = """
SELECT (SELECT jsonb_object_agg(number, backlog_limit) FROM queues_tier),
  (SELECT jsonb_agg(DISTINCT type) FROM queues_outcomerollup WHERE grain = 'total' AND accepted > 0),
  (SELECT max(right(c.relname, 8)::date) - (jobs_now() AT TIME ZONE 'UTC')::date
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'queues_job'::regclass AND c.relname ~ '^queues_job_[0-9]{8}$')
"""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Of one (tier, type): open jobs past their window, up to LOOK_AT_MOST, and since when one is due."""

    overdue: int
    due_since: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Of one queue: when a worker that was well was seen last, and how many slots are free now."""

    seen_at: dt.datetime | None
    free: int


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What stands still for a while. `used`: types of which a job was ever accepted."""

    backlog_limits: Mapping[int, int]
    used: frozenset[str]
    partition_days: int | None
    """For how many days ahead jobs have a place."""


def waiting(windows: Mapping[Pair, int]) -> dict[Pair, Waiting]:
    """Look at the open jobs of each (tier, type), given its window in seconds."""
    if not windows:
        return {}
    params = {
        "tiers": [tier for tier, _ in windows],
        "types": [name for _, name in windows],
        "windows": list(windows.values()),
        "most": LOOK_AT_MOST,
        "oldest": _OLDEST,
    }
    return {(tier, name): Waiting(overdue=n, due_since=since) for tier, name, n, since in _rows(_OVERDUE, params)}


def queues(*, gone_seconds: int) -> dict[str, Queue]:
    """Return the queues that workers of the last hour named."""
    rows = _rows(_QUEUES, {"gone": gone_seconds})
    return {name: Queue(seen_at=seen_at, free=int(free)) for name, seen_at, free in rows}


def ground() -> Ground:
    """Read limits, used types and how far partitions are made ahead, in one statement."""
    limits, used, days = _rows(_GROUND, {})[0]
    return Ground(
        backlog_limits={int(tier): n for tier, n in json.loads(limits or "{}").items()},
        used=frozenset(json.loads(used or "[]")),
        partition_days=days,
    )


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
