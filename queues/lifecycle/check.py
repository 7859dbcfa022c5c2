"""Checks that are due: claim one, write what it answered. A check raises no fence; its `due_at` names it."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from queues.lifecycle.settle import SETTLED_ROWS, with_failure
from queues.lifecycle.sql import BETWEEN, STATE, delta, execute, named, records
from queues.lifecycle.sweep import CHECKS_LOST_MOST
from queues.states import JobState


@dataclass(frozen=True, slots=True)
class DueCheck:
    """One claimed check of an awaiting job. Units: times in seconds since 1970, but `due_at`, which names the claim."""

    id: UUID
    fence: int
    type: str
    contract_version: int
    attempt: int
    begun: int
    payload: str
    idempotency_key: str
    group: str | None
    accepted_at: float
    expires_at: float
    failures: str
    probe: bool
    trace: str | None
    root: UUID
    reference: str | None
    checks: int
    waited: float
    due_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class CheckEnd:
    """What a check found. `outcome`: confirmed, rejected, none (not so far) or failed (it could not answer).

    Units: `next_in` in seconds. `give_up` ends the wait as `on_unconfirmed` (retry or dead) says.
    """

    id: UUID
    fence: int
    due_at: dt.datetime
    outcome: str
    evidence: dict[str, Any] | None = None
    result: Any = None
    failure: dict[str, Any] | None = None
    fingerprint: str | None = None
    next_in: float = 0.0
    give_up: str | None = None


# The next claim of a check that never answers comes later each time: it may be what kills its worker.
CLAIM = f"""
WITH hit AS MATERIALIZED (
  SELECT j.id, c.lease_seconds FROM queues_job j JOIN queues_jobtype c ON c.name = j.type
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'awaiting_confirmation' AND j.due_at <= jobs_now()
    AND j.confirm_by > jobs_now() AND j.checks < j.attempt_limit + {CHECKS_LOST_MOST}
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
)
UPDATE queues_job j SET checks = j.checks + 1,
  due_at = jobs_clock() + make_interval(secs => least(h.lease_seconds * 2 ^ least(j.checks, 6), 600))
FROM hit h WHERE {BETWEEN} AND j.id = h.id
RETURNING j.id, j.fence, j.type, j.contract_version, j.attempt, j.begun, j.payload::text, j.idempotency_key, j."group",
  extract(epoch FROM j.accepted_at)::float8, extract(epoch FROM j.expires_at)::float8, j.failures::text, j.probe,
  j.trace::text, j.root, j.reference, j.checks,
  extract(epoch FROM jobs_clock() - coalesce(j.finished_at, j.accepted_at))::float8, j.due_at
"""

FINISH = f"""
WITH item AS (
  SELECT * FROM json_to_recordset(%(ends)s::json) AS i (id uuid, fence integer, due_at timestamptz, outcome text,
    evidence jsonb, result jsonb, failure jsonb, fingerprint text, next_in float8, give_up text)
), hit AS MATERIALIZED (
  SELECT i.*, j.state AS was, now.at AS now, CASE
      WHEN i.outcome = 'confirmed' THEN 'confirmed'
      WHEN i.outcome = 'rejected' THEN 'dead'
      WHEN i.give_up = 'retry' AND j.attempt < j.attempt_limit THEN 'retrying'
      WHEN i.give_up IS NOT NULL THEN 'dead'
      ELSE 'awaiting_confirmation' END AS state
  FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence AND i.due_at = j.due_at
  CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[]) ORDER BY j.id FOR UPDATE OF j
), written AS (
  UPDATE queues_job j SET state = h.state,
    evidence = CASE h.state WHEN 'confirmed' THEN h.evidence || jsonb_build_object('at', h.now, 'run', h.fence) END,
    result = coalesce(h.result, j.result),
    reason = CASE h.state WHEN 'dead' THEN CASE h.outcome WHEN 'rejected' THEN 'rejected' ELSE 'unconfirmed' END END,
    resolution = CASE h.state WHEN 'dead' THEN 'open' END,
    checks = CASE h.outcome WHEN 'failed' THEN j.checks ELSE 0 END,
    confirm_by = CASE h.state WHEN 'awaiting_confirmation' THEN j.confirm_by END,
    due_at = CASE h.state WHEN 'awaiting_confirmation' THEN
      least(j.confirm_by, h.now + make_interval(secs => h.next_in)) WHEN 'retrying' THEN h.now END,
    settled_at = CASE WHEN h.state IN ('confirmed', 'dead') THEN h.now END,
    failures = CASE WHEN h.failure IS NULL THEN j.failures ELSE
      {with_failure("h.failure")} END,
    fingerprint = coalesce(h.fingerprint, j.fingerprint)
  FROM hit h WHERE {BETWEEN} AND j.id = h.id AND h.was = 'awaiting_confirmation'
  RETURNING j.id, j.fence, j.type, j.tier, j.state, j.reason, j.ready_at, j.settled_at, j.window_seconds, j.probe,
    j.replay_of IS NULL AND NOT j.probe AS cohort, h.was
), moved AS (SELECT * FROM written WHERE state <> was),
counted AS ({delta(*SETTLED_ROWS)})
SELECT id, fence, state FROM written
"""

DUE = f"""
SELECT id, type, due_at FROM queues_job WHERE state = 'awaiting_confirmation' AND due_at <= jobs_now()
  AND confirm_by > jobs_now() AND checks < attempt_limit + {CHECKS_LOST_MOST}
ORDER BY due_at LIMIT %(limit)s
"""


def claim_checks(ids: Sequence[UUID]) -> list[DueCheck]:
    """Claim the checks that are due of these jobs."""
    return [DueCheck(*row) for row in execute(CLAIM, named(ids))]


def finish_checks(ends: Sequence[CheckEnd]) -> dict[tuple[UUID, int], JobState]:
    """Write what checks found. Shape: (id, fence) → state; a pair that is missing was decided otherwise meanwhile."""
    rows = execute(FINISH, {**named([end.id for end in ends]), "ends": records(ends)})
    return {(job_id, fence): JobState(state) for job_id, fence, state in rows}


def due_checks(*, limit: int) -> list[tuple[UUID, str, dt.datetime]]:
    """Return (id, type, due) of awaiting jobs whose check is due, longest ago first."""
    return [(job_id, name, due) for job_id, name, due in execute(DUE, {"limit": limit})]
