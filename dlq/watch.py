"""What alerts, pages and /metrics ask of failures and plans: four statements, each of a bounded cost.

Not here: what it means to them (`jobsboard.alerts.failures`, `jobsboard.metrics`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from dlq import sql
from dlq.groups import AT_IT
from dlq.models import FailureGroup, ReplayPlan

LOOK_AT_MOST: Final = 1_000
"""Failures that died last; of a failure that is new or came back somebody died a moment ago."""
COUNT_AT_MOST: Final = 1_000
STATES: Final = tuple(FailureGroup.State.values)
PLAN_STATES: Final = tuple(
    state.value
    for state in (
        ReplayPlan.State.RUNNING, ReplayPlan.State.PAUSED, ReplayPlan.State.STOPPED, ReplayPlan.State.FOLLOWING,
    )
)  # fmt: skip
"""States of plans that are not over."""

# Newest first on the index failure_recent; each group by its key, however many there are. What is ignored is nobody's
# news, and what is resolved is dealt with.
_NEWS: Final = """
SELECT f.tier, f.type, f.reason, f.first_at, g.regressed_at, left(coalesce(g.error_class, ''), 100)
FROM (SELECT id, tier, type, reason, first_at, last_at FROM queues_failurecount
  WHERE last_at > jobs_now() - interval '1 day' AND died > 0 ORDER BY last_at DESC LIMIT %(most)s) AS f
LEFT JOIN LATERAL (
  SELECT state, regressed_at, error_class FROM dlq_failuregroup WHERE id = f.id LIMIT 1) AS g ON true
WHERE (f.first_at > jobs_now() - interval '1 day' OR g.regressed_at > jobs_now() - interval '1 day')
  AND coalesce(g.state, 'open') NOT IN ('ignored', 'resolved')
ORDER BY f.last_at DESC
"""
# On the index group_ignored; each count and its minutes by their keys. One whose time is over is not ignored any more,
# whether or not the service has said so yet.
_IGNORED: Final = """
SELECT f.tier, f.type, f.reason, greatest(f.open, 0), coalesce((
  SELECT sum(m.died) FROM queues_failureminute m WHERE m.failure_id = f.id AND m.at >= %(since)s), 0)::bigint
FROM (SELECT id FROM dlq_failuregroup
  WHERE state = 'ignored' AND (ignored_until IS NULL OR ignored_until > jobs_now())
  ORDER BY id DESC LIMIT %(most)s) AS g
CROSS JOIN LATERAL (SELECT * FROM queues_failurecount WHERE id = g.id LIMIT 1) AS f
"""
# On the index plan_alive.
_STOPPED: Final = """
SELECT id, action, state_reason, count(*) OVER () FROM dlq_replayplan WHERE state = 'stopped'
ORDER BY state_at DESC LIMIT 1
"""
# On the indexes failure_open, in its order, and plan_alive.
_STATES: Final = """
SELECT 'group', CASE WHEN g.state = 'ignored' THEN 'ignored' WHEN EXISTS (
    SELECT FROM dlq_planfailure a JOIN dlq_replayplan p ON p.id = a.plan_id WHERE a.type = f.type
      AND a.reason = f.reason AND a.fingerprint = f.fingerprint AND p.state IN {at_it}) THEN 'replaying'
  WHEN g.state = 'resolved' THEN 'resolved' ELSE 'open' END, count(*)
FROM (SELECT id, type, reason, fingerprint FROM queues_failurecount WHERE open > 0
  ORDER BY tier, last_at DESC, id DESC LIMIT %(most)s) AS f
LEFT JOIN LATERAL (SELECT state FROM dlq_failuregroup WHERE id = f.id LIMIT 1) AS g ON true
GROUP BY 2
UNION ALL
SELECT 'plan', state, count(*) FROM (
  SELECT state FROM dlq_replayplan WHERE state IN ('running', 'paused', 'stopped', 'following') LIMIT %(most)s) AS p
GROUP BY state
""".replace("{at_it}", AT_IT)


@dataclass(frozen=True, kw_only=True)
class News:
    """A failure that was seen for the first time, or came back, within a day, and that nobody has set aside."""

    tier: int
    type: str
    reason: str
    first_at: dt.datetime
    """The minute of its first death."""
    regressed_at: dt.datetime | None
    error_class: str
    """Empty before somebody has looked at it, and for deaths without an error."""


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """One failure that somebody ignores now: its unresolved dead letters, and how many died of it lately."""

    tier: int
    type: str
    reason: str
    open: int
    died: int


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Plans that their stop rule holds, and the one that stopped last; `why` is what its rule saw."""

    n: int
    id: UUID | None = None
    action: str = ""
    why: str = ""


def news() -> Sequence[News]:
    """Return failures that are new or came back, those that killed last first; of LOOK_AT_MOST."""
    return [
        News(tier=tier, type=name, reason=reason, first_at=first, regressed_at=regressed, error_class=error)
        for tier, name, reason, first, regressed, error in sql.rows(_NEWS, {"most": LOOK_AT_MOST})
    ]


def ignored(*, since: dt.datetime) -> Sequence[Ignored]:
    """Return the failures that somebody ignores now, COUNT_AT_MOST; `since`: deaths in minutes from then on, of the
    last day, are counted.
    """
    rows = sql.rows(_IGNORED, {"since": since, "most": COUNT_AT_MOST})
    return [Ignored(tier=t, type=name, reason=why, open=left, died=died) for t, name, why, left, died in rows]


def stopped() -> Stopped:
    """Return the plans that their stop rule holds until somebody resumes or aborts them."""
    rows = sql.rows(_STOPPED, {})
    if not rows:
        return Stopped(n=0)
    plan_id, action, why, n = rows[0]
    return Stopped(n=n, id=plan_id, action=action, why=why)


def states() -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Count the groups that have unresolved dead letters, and the plans that are not over, each up to COUNT_AT_MOST.

    Shape: state → n of groups, state → n of plans; every state is there.
    """
    groups, plans = dict.fromkeys(STATES, 0), dict.fromkeys(PLAN_STATES, 0)
    for kind, state, n in sql.rows(_STATES, {"most": COUNT_AT_MOST}):
        (groups if kind == "group" else plans)[state] = n
    return groups, plans
