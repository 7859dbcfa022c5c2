"""How things stand now: counts of open jobs, the oldest of them, worker pools. Nothing here counts jobs."""

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection

PAIRS_MAX: Final = 400
"""Of how many (tier, type) pairs the oldest open job is looked up for one page."""

# One statement: every page needs the version, the clock and the counts, and each of the three tables is small.
_BOARD: Final = """
SELECT v.n, jobs_now(), v.folded_at,
  (SELECT jsonb_agg(jsonb_build_array(s.tier, s.type, s.state, s.n)) FROM queues_statecount s WHERE s.n > 0),
  (SELECT jsonb_agg(jsonb_build_array(t.number, t.name, t.target_ratio) ORDER BY t.number) FROM queues_tier t),
  (SELECT jsonb_agg(jsonb_build_array(c.name, c.tier_id, c.version, c.window_seconds,
      coalesce(c.target_ratio, t.target_ratio), c.enabled, c.paused, c.pool, c.provider_key_ttl_seconds,
      t.retry_budget, c.dependency, c.breaker, c.deferred, c.deferred_reason, c.deferred_by,
      CASE WHEN c.deferred THEN (SELECT max(extract(epoch FROM a.at)) FROM (SELECT at, action FROM queues_auditentry
        WHERE object_type = 'job_type' AND object_id = c.name ORDER BY id DESC LIMIT 20) AS a
        WHERE a.action = 'contract.deferred') END)
      ORDER BY c.name) FROM queues_jobtype c JOIN queues_tier t ON t.number = c.tier_id),
  (SELECT count(*) FROM queues_probe p JOIN queues_jobtype c ON c.name = p.type AND c.enabled AND NOT c.paused
      AND NOT c.deferred WHERE p.failures > 0),
  (SELECT count(*) FROM queues_dependency WHERE state = 'open')
FROM queues_boardversion v WHERE v.id = 1
"""

# Index job_open: one look per pair and partition, however many jobs there are. Running jobs are as few as bodies. A job
# of ours (`probe`) is nobody's oldest; of each type at most one or two are open.
_OLDEST: Final = """
SELECT w.tier, w.type, j.ready_at FROM unnest(%(tiers)s::smallint[], %(types)s::text[]) AS w (tier, type)
CROSS JOIN LATERAL (
  SELECT ready_at FROM queues_job
  WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation') AND tier = w.tier AND type = w.type AND NOT probe
  ORDER BY ready_at LIMIT 1
) AS j
UNION ALL
SELECT tier, type, min(ready_at) FROM queues_job WHERE state = 'processing' AND NOT probe GROUP BY tier, type
"""

_POOLS: Final = """
SELECT kind, q, sum(slots), sum(busy), count(*), max(seen_at), max(seen_at) > jobs_now() - interval '30 seconds',
  array_remove(array_agg(DISTINCT trouble), '')
FROM queues_workerprocess LEFT JOIN LATERAL jsonb_array_elements_text(queues) AS q ON true
GROUP BY kind, q, seen_at > jobs_now() - interval '30 seconds'
"""


@dataclass(frozen=True, kw_only=True)
class TypeNow:
    """What a page says about a job type without asking again. `target` is the type's own or its tier's."""

    name: str
    tier: int
    version: int
    window_seconds: int
    target: float
    enabled: bool
    paused: bool
    pool: str
    key_ttl_seconds: int
    """How long the provider honours an idempotency key; 0 is not known."""
    retry_budget: float
    """The tier's: the share of runs that may be retries."""
    dependency: str
    breaker: str
    """The state of its dependency's breaker: closed (also without one), open, half_open."""
    deferred: bool = False
    deferred_reason: str = ""
    deferred_by: str = ""
    deferred_since: dt.datetime | None = None
    """As far as the audit log knows."""

    @property
    def on_hold(self) -> bool:
        """Whether a switch keeps its jobs from being started."""
        return self.paused or self.deferred


@dataclass(frozen=True, kw_only=True)
class TierNow:
    """One of the three tiers."""

    number: int
    name: str
    target: float


@dataclass(frozen=True, kw_only=True)
class Board:
    """The state of things as far as folded, and the version that tells whether a page could differ."""

    version: int
    now: dt.datetime
    folded_at: dt.datetime
    """What happened before is in the rollups."""
    types: Mapping[str, TypeNow]
    tiers: Mapping[int, TierNow]
    counts: Mapping[tuple[int, str], Mapping[str, int]]
    """(tier, type) → state → jobs. A type that moved has jobs in two tiers. `dead` are unresolved dead letters.
    Probes are in none; beside the states `probe` counts those that wait."""
    probes_failing: int = 0
    """Types that no switch holds and whose last probe failed."""
    breakers_open: int = 0
    """Dependencies whose circuit breaker is open."""

    def count(self, *states: str, tier: int | None = None, name: str | None = None) -> int:
        """Return how many jobs are in these states."""
        return sum(
            found.get(state, 0)
            for (of_tier, of_type), found in self.counts.items()
            if tier in (None, of_tier) and name in (None, of_type)
            for state in states
        )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers that consume one queue."""

    queue: str
    slots: int
    busy: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Who is there. `scheduler_seen_at` is None when none ever was; `trouble` is what workers say of themselves."""

    pools: Mapping[str, Pool] = field(default_factory=dict)
    scheduler_alive: bool = False
    scheduler_seen_at: dt.datetime | None = None
    trouble: Sequence[str] = ()


def _rows(sql: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def board() -> Board:
    """Read version, clock, counts, tiers and types, in one statement."""
    version, now, folded_at, counts, tiers, types, failing, opened = _rows(_BOARD)[0]
    by_pair: dict[tuple[int, str], dict[str, int]] = {}
    for tier, name, state, n in _json(counts):
        by_pair.setdefault((tier, name), {})[state] = n
    names = ("name", "tier", "version", "window_seconds", "target", "enabled", "paused", "pool", "key_ttl_seconds",
             "retry_budget", "dependency", "breaker", "deferred", "deferred_reason", "deferred_by")  # fmt: skip
    return Board(
        version=version,
        now=now,
        folded_at=folded_at,
        counts=by_pair,
        tiers={row[0]: TierNow(number=row[0], name=row[1], target=row[2]) for row in _json(tiers)},
        types={
            row[0]: TypeNow(**dict(zip(names, row, strict=True)), deferred_since=_time(since))
            for *row, since in _json(types)
        },
        probes_failing=failing,
        breakers_open=opened,
    )


def oldest_open(pairs: Iterable[tuple[int, str]]) -> dict[tuple[int, str], dt.datetime]:
    """Return since when the oldest open job of each (tier, type) is ready. A job of the future may be all there is."""
    asked = sorted(pairs)[:PAIRS_MAX]
    if not asked:
        return {}
    params = {"tiers": [tier for tier, _ in asked], "types": [name for _, name in asked]}
    oldest: dict[tuple[int, str], dt.datetime] = {}
    for tier, name, ready_at in _rows(_OLDEST, params):
        oldest[(tier, name)] = min(ready_at, oldest.get((tier, name), ready_at))
    return oldest


def processes() -> Processes:
    """Return live worker pools by queue, and whether a scheduler reports."""
    pools: dict[str, Pool] = {}
    trouble: set[str] = set()
    alive, seen = False, None
    for kind, queue, slots, busy, n, seen_at, fresh, said in _rows(_POOLS):
        if kind == "scheduler":
            alive, seen = alive or fresh, max(seen, seen_at) if seen else seen_at
        elif fresh and queue is not None:
            pools[queue] = Pool(queue=queue, slots=int(slots), busy=int(busy), processes=n)
            trouble |= set(said)
    return Processes(pools=pools, scheduler_alive=alive, scheduler_seen_at=seen, trouble=sorted(trouble))


def _time(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


def _json(value: str | None) -> Any:
    """Read what jsonb_agg gave: nothing without rows. Django leaves jsonb of a raw statement as text."""
    return json.loads(value) if value else []
