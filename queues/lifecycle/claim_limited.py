"""Claim due jobs of types with limits, order or a half open breaker: lock what their claims share, then count.

Two statements in one transaction: a count in the statement that waits for the lock would use the snapshot from before
the wait (SCENARIOS 8 saw 30 runs under a limit of 5). "Running" are runs that hold a lease.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from django.db import OperationalError, connection, transaction

from queues.lifecycle.claim import DUE, Run, claiming, taking
from queues.lifecycle.sql import execute, named, transition, uuids

LOCK_WAIT: Final = "500ms"
IDLE_MOST: Final = "3s"
LOCK_NOT_AVAILABLE: Final = "55P03"

_GROUPED: Final = "(c.group_concurrency > 0 OR c.group_rate_per_second > 0)"
_LIMITED: Final = f"{DUE} AND (c.limited OR c.breaker = 'half_open') AND c.breaker <> 'open'"

_BURST: Final = "greatest(1, CASE WHEN c.rate_burst > 0 THEN c.rate_burst ELSE ceil(c.rate_per_second) END)"
_GROUP_BURST: Final = "greatest(1, ceil(c.group_rate_per_second))"


def _tokens(*, rate: str, burst: str) -> str:
    """Return SQL for the tokens of a bucket now, from its FlowState `f` (which may be missing: a full one).

    One of the future is full too, once: after the database's clock was set back, it would stay empty until then.
    """
    return f"""CASE WHEN f.filled_at > jobs_now() + interval '1 s' THEN {burst} ELSE least({burst}, coalesce(f.tokens
      + {rate} * greatest(0, extract(epoch FROM jobs_now() - f.filled_at)::float8), {burst})) END"""


TOKENS: Final = f"CASE WHEN c.rate_per_second > 0 THEN {_tokens(rate='c.rate_per_second', burst=_BURST)} END"
GROUP_TOKENS: Final = f"""CASE WHEN c.group_rate_per_second > 0 THEN
      {_tokens(rate="c.group_rate_per_second", burst=_GROUP_BURST)} END"""
RUNNING: Final = "CASE WHEN c.concurrency > 0 THEN jobs_running(c.name) END"


def group_free(group: str) -> str:
    """Return SQL for how many runs of a group may begin by its concurrency; null: it has no limit."""
    return f"CASE WHEN c.group_concurrency > 0 THEN c.group_concurrency - jobs_running_in_group(c.name, {group}) END"


# Which rows a claim of these jobs has to lock, in one order for all. Order needs one too: a replay takes its parent's
# place, and an accept may commit after a later one, so that two jobs can both look like their group's first.
_WANTED = f"""
WITH due AS MATERIALIZED (
  SELECT j.id, j.type, CASE WHEN {_GROUPED} OR c.ordered AND j.seq IS NOT NULL THEN j."group" END AS lane,
    c.concurrency > 0 OR c.rate_per_second > 0 AS shared, c.breaker, c.dependency
  FROM queues_job j JOIN queues_jobtype c ON c.name = j.type WHERE {_LIMITED}
), want AS MATERIALIZED (
  SELECT DISTINCT d.type, g."group" FROM due d
    CROSS JOIN LATERAL (VALUES (CASE WHEN d.shared THEN '' END), (d.lane)) AS g ("group")
  WHERE g."group" IS NOT NULL
)"""
LOCK = f"""{_WANTED}, locked AS MATERIALIZED (
  SELECT f.type, f."group" FROM queues_flowstate f JOIN want w ON w.type = f.type AND w."group" = f."group"
  ORDER BY f.type, f."group" FOR UPDATE OF f
), trials AS MATERIALIZED (
  SELECT d.name FROM queues_dependency d WHERE d.state = 'half_open' AND d.trials_left > 0
    AND d.name IN (SELECT dependency FROM due WHERE breaker = 'half_open')
  ORDER BY d.name FOR UPDATE OF d
)
SELECT (SELECT count(*) FROM want) > (SELECT count(*) FROM locked), (SELECT count(*) FROM trials),
  ARRAY(SELECT id FROM due)
"""
# Outside the transaction that locks: who waits here for another's insert holds nothing.
MAKE = f"""{_WANTED}
INSERT INTO queues_flowstate (type, "group", filled_at) SELECT w.type, w."group", jobs_clock() FROM want w
ORDER BY w.type, w."group" ON CONFLICT (type, "group") DO NOTHING
"""

_NESTED = f"SET LOCAL lock_timeout = '{LOCK_WAIT}'"
# Not in a transaction of the caller's, as in tests of users: it may well stand still for longer.
_WAITS = f"""
SELECT set_config('lock_timeout', '{LOCK_WAIT}', true),
  set_config('idle_in_transaction_session_timeout', '{IDLE_MOST}', true)"""

_CHOSEN = f"""FROM queues_job j JOIN queues_jobtype c ON c.name = j.type
  WHERE j.id IN (SELECT id FROM chosen) AND {DUE}"""
_SPENT = """spent AS (
  UPDATE queues_flowstate f SET tokens = c.tokens - m.n, filled_at = jobs_now()
  FROM (SELECT type, count(*) AS n FROM moved GROUP BY type) AS m JOIN kind c ON c.name = m.type
  WHERE f.type = m.type AND f."group" = '' AND c.tokens IS NOT NULL
)"""
_SPENT_IN_GROUP = """spent_in_group AS (
  UPDATE queues_flowstate f SET tokens = g.tokens - m.n, filled_at = jobs_now()
  FROM (SELECT type, "group", count(*) AS n FROM moved GROUP BY 1, 2) AS m
  JOIN within g ON g.type = m.type AND g."group" = m."group"
  WHERE f.type = m.type AND f."group" = m."group" AND g.tokens IS NOT NULL
)"""
_LENT = """lent AS (
  UPDATE queues_dependency d SET trials_left = d.trials_left - m.n
  FROM (SELECT c.dependency, count(*) AS n FROM moved m JOIN kind c ON c.name = m.type WHERE m.trial GROUP BY 1) AS m
  WHERE d.name = m.dependency AND d.state = 'half_open'
)"""

# First what fits into each group, then what fits into the type, then what a half open breaker still lets through;
# inside each by priority and age, groups in turn. Tokens count claims, so a released run has spent one.
CLAIM_LIMITED = f"""
WITH kind AS MATERIALIZED (
  SELECT c.*, c.concurrency - {RUNNING} AS free, {TOKENS} AS tokens
  FROM queues_jobtype c LEFT JOIN queues_flowstate f ON f.type = c.name AND f."group" = ''
  WHERE c.name IN (SELECT DISTINCT j.type FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]))
), due AS MATERIALIZED (
  SELECT j.id, j.type, j."group", c.dependency, c.breaker, j.priority, j.due_at,
    array_position(%(turns)s::uuid[], j.id) AS turn
  FROM queues_job j JOIN kind c ON c.name = j.type
  WHERE {_LIMITED} AND (NOT c.ordered OR j.seq IS NULL OR j."group" IS NULL OR j.id =
    (SELECT h.id FROM jobs_head_of_group(j.type, j."group", c.ordered_on_failure = 'block') AS h WHERE h.due))
), within AS MATERIALIZED (
  SELECT d.type, d."group", {group_free('d."group"')} AS free, {GROUP_TOKENS} AS tokens
  FROM (SELECT DISTINCT type, "group" FROM due WHERE "group" IS NOT NULL) AS d JOIN kind c ON c.name = d.type
  LEFT JOIN queues_flowstate f ON f.type = d.type AND f."group" = d."group"
  WHERE {_GROUPED}
), in_group AS (
  SELECT d.*, row_number() OVER (PARTITION BY d.type, d."group"
    ORDER BY d.turn, d.priority DESC, d.due_at, d.id) AS place
  FROM due d
), in_type AS (
  SELECT d.*, row_number() OVER (PARTITION BY d.type
    ORDER BY d.turn, CASE WHEN d."group" IS NULL THEN 0 ELSE d.place END, d.priority DESC, d.due_at, d.id) AS type_place
  FROM in_group d LEFT JOIN within g ON g.type = d.type AND g."group" = d."group"
  WHERE d.place <= least(coalesce(g.free, d.place), coalesce(floor(g.tokens), d.place))
), in_trial AS (
  SELECT d.*, row_number() OVER (PARTITION BY d.dependency ORDER BY d.priority DESC, d.due_at, d.id) AS trial_place
  FROM in_type d JOIN kind c ON c.name = d.type
  WHERE d.type_place <= least(%(most)s, coalesce(c.free, d.type_place), coalesce(floor(c.tokens), d.type_place))
), chosen AS MATERIALIZED (
  SELECT d.id FROM in_trial d LEFT JOIN queues_dependency x ON x.name = d.dependency AND d.breaker <> 'closed'
  WHERE d.breaker = 'closed' OR x.state = 'closed'
    OR x.state = 'half_open' AND d.trial_place <= x.trials_left AND %(trials)s
), {taking(_CHOSEN, _SPENT, _SPENT_IN_GROUP, _LENT)}"""


def claim_limited(
    ids: Sequence[UUID], *, worker: str, checked: Sequence[str] = (), most: int | None = None
) -> list[Run]:
    """Start runs of those due jobs that the limits of their types and groups, their order and their breakers let begin.

    Exact: runs that hold a lease never exceed a limit, however many claim at once. Claims of one limited type wait for
    each other, LOCK_WAIT at most: a claimer that was frozen in the middle shall not hold up other types' work here, and
    the database ends it after IDLE_MOST.
    With `most` not more than so many of a type, in the order in which they are named.
    """
    params = claiming(ids, worker=worker, checked=checked)
    params |= {"turns": uuids(ids if most else ()), "most": most or len(ids), "alone": (most or len(ids)) == 1}
    nested = connection.in_atomic_block
    try:
        for _ in range(2):
            with transaction.atomic():
                execute(_NESTED if nested else _WAITS, {})
                missing, trials, due = execute(LOCK, params)[0]
                if not due:
                    return []
                if not missing:
                    # What became due since then may be of a group that is not locked here.
                    rows = transition("claim_limited", CLAIM_LIMITED, {**params, **named(due), "trials": trials > 0})
                    return [Run(*row) for row in rows]
            execute(MAKE, params)
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
    # The hints come again.
    return []


# A bucket that has had that long is full, whatever its rate: at least one token comes in 1 / rate seconds.
FORGET = """
DELETE FROM queues_flowstate f USING (
  SELECT f.type, f."group" FROM queues_flowstate f LEFT JOIN queues_jobtype c ON c.name = f.type
  WHERE f.filled_at < jobs_now() - greatest(make_interval(hours => %(hours)s), CASE WHEN f.tokens IS NULL THEN
    interval '0' ELSE make_interval(secs => least(1e8, greatest(c.rate_burst, 2) / CASE WHEN f."group" = ''
      THEN nullif(c.rate_per_second, 0) ELSE nullif(c.group_rate_per_second, 0) END)) END)
  ORDER BY f.type, f."group" LIMIT %(limit)s FOR UPDATE OF f SKIP LOCKED
) AS old WHERE f.type = old.type AND f."group" = old."group" RETURNING 1
"""


def forget_flow(*, hours: int, limit: int) -> int:
    """Forget what claims shared of types and groups that rested for so long; returns how many rows."""
    return len(execute(FORGET, {"hours": hours, "limit": limit}))
