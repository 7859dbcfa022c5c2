"""What /metrics asks beside the rollups: ages of open jobs, limbo, processes. Bounded index probes, whatever there is.

Not here: counts and histograms (`queues.outcomes`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection

from queues.workers import GONE_SECONDS

Pair = tuple[int, str]

QUANTILES: Final = (0.5, 0.95, 0.99)
LOOK_AT_MOST: Final = 20_000
"""Index entries of open jobs that one scrape may read, shared by all types."""
LIMBO_AT_MOST: Final = 1_000
"""Of each kind; more is not counted."""
LIMBO_SECONDS: Final = 30

# Index job_open, oldest first: the rank from the oldest is what a quantile of ages costs. Running jobs are not in it.
# Each stretch is read once, not again for each rank. There may be fewer jobs than were counted: the counts are as old
# as the last fold.
_AGES: Final = """
WITH ranked AS MATERIALIZED (
  SELECT w.tier, w.type, j.rank, j.ready_at, max(j.rank) OVER (PARTITION BY w.tier, w.type) AS last
  FROM unnest(%(tiers)s::smallint[], %(types)s::text[], %(look)s::integer[]) AS w (tier, type, look)
  CROSS JOIN LATERAL (
    SELECT ready_at, row_number() OVER (ORDER BY ready_at) AS rank FROM (
      SELECT ready_at FROM queues_job
      WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation') AND tier = w.tier AND type = w.type
        AND NOT probe
      ORDER BY ready_at LIMIT w.look) AS oldest
  ) AS j
)
SELECT r.tier, r.type, r.rank, greatest(extract(epoch FROM jobs_now() - j.ready_at), 0)::float8
FROM ranked j JOIN unnest(%(of_tier)s::smallint[], %(of_type)s::text[], %(ranks)s::integer[]) AS r (tier, type, rank)
  ON r.tier = j.tier AND r.type = j.type AND j.rank = least(r.rank, j.last)
"""

# Indexes job_lease, job_awaiting and job_expiry.
_LIMBO: Final = """
SELECT (SELECT count(*) FROM (
    SELECT FROM queues_job WHERE state = 'processing' AND due_at < jobs_now() - make_interval(secs => %(late)s)
    LIMIT %(most)s) AS a),
  (SELECT count(*) FROM (
    SELECT FROM queues_job
    WHERE state = 'awaiting_confirmation' AND due_at < jobs_now() - make_interval(secs => %(late)s)
    LIMIT %(most)s) AS b),
  (SELECT count(*) FROM (
    SELECT FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation')
      AND expires_at < jobs_now() - make_interval(secs => %(late)s)
      AND (state <> 'awaiting_confirmation' OR due_at >= jobs_now() - make_interval(secs => %(late)s))
    LIMIT %(most)s) AS c)
"""
LIMBO: Final = ("lease", "deadline", "max_age")
"""What passed without anybody acting on it, in the order of the statement's columns."""

_PROCESSES: Final = """
SELECT kind, queues, slots, least(busy, slots), trouble <> '', memory_bytes FROM queues_workerprocess
WHERE seen_at > jobs_now() - make_interval(secs => %(gone)s)
"""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A live process as it reports itself."""

    kind: str
    queues: tuple[str, ...]
    slots: int
    busy: int
    troubled: bool
    memory_bytes: int


def ages(waiting: Mapping[Pair, int]) -> dict[tuple[int, str, float], float]:
    """Return how long ago jobs that are not running became ready, in seconds.

    Shape: waiting: (tier, type) → how many; answer: (tier, type, quantile) → seconds, 0 for a job of the future.
    A quantile that would mean looking at more jobs than its share of LOOK_AT_MOST is left out.
    """
    if not waiting:
        return {}
    share = max(LOOK_AT_MOST // len(waiting), 1)
    ranks = {
        (tier, name, q): rank
        for (tier, name), n in waiting.items()
        for q in QUANTILES
        if (rank := n - math.ceil(q * n) + 1) <= share
    }
    deepest: dict[Pair, int] = {}
    for (tier, name, _), rank in ranks.items():
        deepest[(tier, name)] = max(rank, deepest.get((tier, name), 0))
    distinct = sorted({(tier, name, rank) for (tier, name, _), rank in ranks.items()})
    found = {
        (tier, name, rank): seconds
        for tier, name, rank, seconds in _rows(
            _AGES,
            {
                "tiers": [tier for tier, _ in deepest],
                "types": [name for _, name in deepest],
                "look": list(deepest.values()),
                "of_tier": [tier for tier, _, _ in distinct],
                "of_type": [name for _, name, _ in distinct],
                "ranks": [rank for _, _, rank in distinct],
            },
        )
    }
    return {key: found[(*key[:2], rank)] for key, rank in ranks.items() if (*key[:2], rank) in found}


def limbo() -> dict[str, int]:
    """Return how many open jobs nobody acted on 30 s after they were due, by what passed, each up to LIMBO_AT_MOST."""
    (row,) = _rows(_LIMBO, {"late": LIMBO_SECONDS, "most": LIMBO_AT_MOST})
    return dict(zip(LIMBO, row, strict=True))


def processes() -> Sequence[Process]:
    """Return the workers and schedulers that reported themselves in the last 15 seconds."""
    return [
        Process(
            kind=kind,
            queues=tuple(sorted(json.loads(queues))),
            slots=slots,
            busy=busy,
            troubled=troubled,
            memory_bytes=memory,
        )
        for kind, queues, slots, busy, troubled, memory in _rows(_PROCESSES, {"gone": GONE_SECONDS})
    ]


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
