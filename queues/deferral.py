"""Defer what can wait while a tier above waits for workers, and take it back when that tier is served again.

This is what the scheduler does by itself. A person's own deferral is `contract_switches`', and what a deferred type is
kept from is decided by the statements that claim. Nothing is remembered between two looks: until when a type is
deferred says when its tier was last seen to wait, so any number of schedulers may look.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection, transaction

from queues import audit, contracts
from queues.contract_switches import SCHEDULER, changed
from queues.outcomes.causes.words import length
from queues.states import WAITING, WAITING_PROBES

HOLD_SECONDS: Final = 300
"""A type is deferred for so long, and again while it lasts: without a scheduler nothing stays deferred for ever."""
RENEW_SECONDS: Final = 10
"""The end is moved at most so often."""
CALM_SECONDS: Final = 60
"""So long a tier must have been below half of its bound."""
LEFT_ALONE_SECONDS: Final = 600
"""What a person took back is not deferred again for so long."""
BATCH: Final = 100
PAIRS_MOST: Final = 400
"""Types of a tier that are looked at."""
LAST: Final = -100
"""Jobs of this priority go last on purpose, as replays of a plan do: that they wait says nothing."""

_NONE: Final = 32_767
"""A tier below all others."""

# One entry of index job_staging for each type and priority, however many wait: the oldest of it. What waits for a
# limit, an order or a breaker cannot be told from what waits for a worker, so types that have such are left out.
_WAITS: Final = """
WITH RECURSIVE bounded AS MATERIALIZED (
  SELECT t.number, t.defer_after_seconds AS bound FROM queues_tier t WHERE t.defer_after_seconds > 0
    AND EXISTS (SELECT FROM queues_jobtype c WHERE c.tier_id > t.number AND c.deferrable)
), pair AS MATERIALIZED (
  SELECT b.number, w.tier, w.type FROM bounded b CROSS JOIN LATERAL (
    SELECT DISTINCT s.type, s.tier FROM queues_jobtype c
    JOIN queues_statecount s ON s.type = c.name AND s.state = ANY(%(waiting)s) AND s.n > 0
    WHERE c.tier_id = b.number AND NOT c.paused AND NOT c.deferred AND NOT c.limited AND c.breaker = 'closed'
    ORDER BY s.type, s.tier LIMIT %(most)s) AS w
), head AS (
  SELECT p.number, p.tier, p.type, j.priority, j.due_at FROM pair p CROSS JOIN LATERAL (
    SELECT priority, due_at FROM queues_job
    WHERE state IN ('accepted', 'retrying') AND tier = p.tier AND type = p.type AND priority > %(last)s
    ORDER BY priority DESC, due_at LIMIT 1) AS j
  UNION ALL
  SELECT h.number, h.tier, h.type, j.priority, j.due_at FROM head h CROSS JOIN LATERAL (
    SELECT priority, due_at FROM queues_job
    WHERE state IN ('accepted', 'retrying') AND tier = h.tier AND type = h.type AND priority > %(last)s
      AND priority < h.priority
    ORDER BY priority DESC, due_at LIMIT 1) AS j
), oldest AS (
  SELECT number, min(due_at) AS due_at FROM head GROUP BY number
)
SELECT jsonb_agg(jsonb_build_array(b.number, b.bound,
  greatest(0, coalesce(extract(epoch FROM jobs_now() - o.due_at), 0))) ORDER BY b.number)
FROM bounded b LEFT JOIN oldest o ON o.number = b.number
"""
# One round trip. A sort would read a backlog that no statistics know of so far; and of the types and priorities the
# planner expects so many that a server with just-in-time compilation would compile for longer than the look takes.
_LOOK: Final = f"""SET LOCAL enable_sort = off; SET LOCAL jit = off; {_WAITS};
SET LOCAL enable_sort = on; SET LOCAL jit TO DEFAULT"""

# Index audit_by_object. What is paused waits anyway.
_DEFER: Final = """
WITH due AS MATERIALIZED (
  SELECT c.name FROM queues_jobtype c
  WHERE c.deferrable AND NOT c.deferred AND NOT c.paused AND c.tier_id > %(above)s AND NOT EXISTS (
    SELECT FROM (SELECT action, actor, at FROM queues_auditentry
      WHERE object_type = 'job_type' AND object_id = c.name ORDER BY id DESC LIMIT 20) AS a
    WHERE a.action = 'contract.undeferred' AND a.actor <> %(by)s
      AND a.at > jobs_now() - make_interval(secs => %(left_alone)s))
  ORDER BY c.name LIMIT %(limit)s FOR UPDATE OF c SKIP LOCKED
)
UPDATE queues_jobtype AS t SET deferred = true, deferred_reason = %(reason)s, deferred_by = %(by)s,
  deferred_until = jobs_now() + make_interval(secs => %(hold)s)
FROM due AS d WHERE t.name = d.name
RETURNING t.name, t.deferred_until
"""

_RENEW: Final = """
WITH due AS MATERIALIZED (
  SELECT c.name FROM queues_jobtype c
  WHERE c.deferred AND c.deferred_by = %(by)s AND c.deferrable AND c.tier_id > %(pressing)s
    AND c.deferred_until < jobs_now() + make_interval(secs => %(hold)s - %(renew)s)
  ORDER BY c.name LIMIT %(limit)s FOR UPDATE OF c SKIP LOCKED
)
UPDATE queues_jobtype AS t SET deferred_until = jobs_now() + make_interval(secs => %(hold)s)
FROM due AS d WHERE t.name = d.name
RETURNING t.name
"""

_TAKE_BACK: Final = """
WITH due AS MATERIALIZED (
  SELECT c.name, CASE WHEN NOT c.deferrable THEN 'contract' WHEN c.tier_id <= %(bounded)s THEN 'unbounded'
    ELSE 'served' END AS why
  FROM queues_jobtype c
  WHERE c.deferred AND c.deferred_by = %(by)s AND (NOT c.deferrable OR c.tier_id <= %(bounded)s OR (
    c.tier_id <= %(pressing)s
    AND c.deferred_until < jobs_now() + make_interval(secs => %(hold)s - %(renew)s - %(calm)s)))
  ORDER BY c.name LIMIT %(limit)s FOR UPDATE OF c SKIP LOCKED
)
UPDATE queues_jobtype AS t SET deferred = false, deferred_reason = '', deferred_by = '', deferred_until = NULL
FROM due AS d WHERE t.name = d.name
RETURNING t.name, d.why
"""
_BACK: Final[Mapping[str, str]] = {
    "contract": "Its contract no longer allows deferral.",
    "unbounded": "No tier above it has a bound any more.",
    "served": f"No tier above it has waited for half of its bound in the last {CALM_SECONDS} s.",
}


@dataclass(frozen=True, kw_only=True)
class Wait:
    """How long the oldest due job of a tier waits for a worker, and the bound of that tier. Units: seconds."""

    tier: int
    bound: int
    seconds: float

    @property
    def starves(self) -> bool:
        """It waits for too long: what can wait below is deferred."""
        return self.seconds > self.bound

    @property
    def presses(self) -> bool:
        """It waits for so long that what is deferred stays so."""
        return self.seconds >= self.bound / 2

    @property
    def words(self) -> str:
        """Say it, as the reason of a deferral."""
        return f"Tier {self.tier} waits {length(self.seconds)} for a worker, more than {length(self.bound)}"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What one look did: the types that are deferred and taken back, each by this look, and how many go on."""

    deferred: Sequence[str] = field(default_factory=list)
    taken_back: Sequence[str] = field(default_factory=list)
    renewed: int = 0
    reason: str = ""

    @property
    def more(self) -> bool:
        """A batch was full."""
        return BATCH in (len(self.deferred), len(self.taken_back), self.renewed)


def waits() -> list[Wait]:
    """Return how long each tier waits that has a bound and deferrable types below it, in one bounded statement.

    Counted are types that neither a switch, a limit nor a breaker holds, by their oldest due job.
    """
    params: dict[str, Any] = {"waiting": [*WAITING, WAITING_PROBES], "most": PAIRS_MOST, "last": LAST}
    with connection.cursor() as cursor:
        cursor.execute(_LOOK, params)
        for _ in range(2):
            cursor.nextset()
        found = cursor.fetchone()[0]
    rows = json.loads(found) if found else []
    return [Wait(tier=tier, bound=bound, seconds=seconds) for tier, bound, seconds in rows]


def sweep() -> Swept:
    """Defer, go on deferring, or take back, as tiers with a bound wait for workers now."""
    current = contracts.all_current().values()
    deferred = any(one.deferred for one in current)
    # Where nothing can be deferred nothing is asked.
    if not deferred and not any(one.deferrable for one in current):
        return Swept()
    seen = waits()
    starving = next((one for one in seen if one.starves), None)
    params: dict[str, Any] = {
        "by": SCHEDULER, "hold": HOLD_SECONDS, "renew": RENEW_SECONDS, "calm": CALM_SECONDS,
        "left_alone": LEFT_ALONE_SECONDS, "limit": BATCH,
        "bounded": min((one.tier for one in seen), default=_NONE),
        "pressing": min((one.tier for one in seen if one.presses), default=_NONE),
    }  # fmt: skip
    with transaction.atomic():
        renewed = len(_rows(_RENEW, params)) if deferred and params["pressing"] < _NONE else 0
        back = _take_back(params) if deferred else []
        new = _defer(starving, params) if starving is not None else []
        if renewed or back or new:
            changed()
    return Swept(deferred=new, taken_back=back, renewed=renewed, reason=starving.words if starving and new else "")


def _defer(wait: Wait, params: Mapping[str, Any]) -> list[str]:
    """Defer what can wait below a tier that starves, audited."""
    rows: list[tuple[str, dt.datetime]] = _rows(_DEFER, {**params, "above": wait.tier, "reason": wait.words})
    audit.record_each(
        "contract.deferred",
        {name: {"deferred": True, "deferred_until": until.isoformat()} for name, until in rows},
        actor=SCHEDULER,
        object_type="job_type",
        before={"deferred": False, "deferred_until": None},
        reason=wait.words,
        source="command",
    )
    return [name for name, _ in rows]


def _take_back(params: Mapping[str, Any]) -> list[str]:
    """Take back what the scheduler deferred and no longer has to, audited."""
    rows = _rows(_TAKE_BACK, params)
    for why, reason in _BACK.items():
        audit.record_each(
            "contract.undeferred",
            {name: {"deferred": False} for name, of in rows if of == why},
            actor=SCHEDULER,
            object_type="job_type",
            before={"deferred": True},
            reason=reason,
            source="command",
        )
    return [name for name, _ in rows]


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
