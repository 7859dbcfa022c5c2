"""Checks that are due: claim one, write what it answered. A check raises no fence; its `due_at` names it."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from queues.lifecycle.settle import LAST_CHECK, SETTLED_ROWS, STAGE_LEFT, fingerprint_of, left_open, with_failure
from queues.lifecycle.sql import BETWEEN, STATE, delta, execute, named, records, transition, uuids
from queues.lifecycle.sweep import CHECKS_LOST_MOST, UNCONFIRMED_STORY
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
    reference: str | None
    check_failures: int
    waited: float
    due_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class CheckEnd:
    """What a check found. `outcome`: confirmed, rejected, none (not so far) or failed (it could not answer).

    Units: `next_in` in seconds. `otherwise` is what follows at the deadline without a proof: retry or dead.
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
    otherwise: str = "dead"


CLAIM_SECONDS = 75
"""Longer than a check may take. Nothing renews the claim of a check."""

_DUE = f"""j.state = 'awaiting_confirmation' AND j.polled AND j.due_at <= jobs_now() AND j.expires_at > jobs_now()
    AND j.checks < j.attempt_limit + {CHECKS_LOST_MOST}"""

# The next claim of a check that never answers comes later each time: it may be what kills its worker.
CLAIM = f"""
WITH hit AS MATERIALIZED (
  SELECT j.id FROM queues_job j
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {_DUE.replace("j.state", STATE)}
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
)
UPDATE queues_job j SET checks = j.checks + 1,
  due_at = jobs_clock() + make_interval(secs => least({CLAIM_SECONDS} * 2 ^ least(j.checks, 6), 600))
FROM hit h WHERE {BETWEEN} AND j.id = h.id
RETURNING j.id, j.fence, j.type, j.contract_version, j.attempt, j.begun, j.payload::text, j.idempotency_key, j."group",
  extract(epoch FROM j.accepted_at)::float8, extract(epoch FROM j.expires_at)::float8, j.failures::text, j.probe,
  j.trace::text, j.reference, j.check_failures,
  extract(epoch FROM jobs_clock() - coalesce(j.finished_at, j.accepted_at))::float8, j.due_at
"""

FINISH = f"""
WITH item AS (
  SELECT * FROM json_to_recordset(%(ends)s::json) AS i (id uuid, fence integer, due_at timestamptz, outcome text,
    evidence jsonb, result jsonb, failure jsonb, fingerprint text, next_in float8, otherwise text)
), hit AS MATERIALIZED (
  SELECT i.*, j.state AS was, now.at AS now, coalesce(j.entered_at, j.finished_at) AS since, CASE
      WHEN i.outcome = 'confirmed' THEN 'confirmed'
      WHEN i.outcome = 'rejected' THEN 'dead'
      WHEN j.confirm_by > now.at OR (i.outcome = 'failed' AND j.check_failures + 1 < j.attempt_limit)
        THEN 'awaiting_confirmation'
      WHEN i.otherwise = 'retry' AND j.attempt < j.attempt_limit AND j.expires_at > now.at THEN 'retrying'
      ELSE 'dead' END AS state
  FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence AND i.due_at = j.due_at
  CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[]) ORDER BY j.id FOR UPDATE OF j
), written AS (
  UPDATE queues_job j SET state = h.state,
    evidence = CASE h.state WHEN 'confirmed' THEN h.evidence || jsonb_build_object('at', h.now, 'run', h.fence) END,
    result = coalesce(h.result, j.result),
    reason = CASE h.state WHEN 'dead' THEN CASE h.outcome WHEN 'rejected' THEN 'rejected' ELSE 'unconfirmed' END END,
    {left_open("h.state = 'dead'")},
    checks = 0,
    check_failures = CASE h.outcome WHEN 'failed' THEN least(j.check_failures + 1, 1000) ELSE 0 END,
    polled = h.state = 'awaiting_confirmation',
    entered_at = CASE h.state WHEN 'awaiting_confirmation' THEN j.entered_at ELSE h.now END,
    unknown_end = h.state IN ('retrying', 'dead') AND h.outcome <> 'rejected',
    confirm_by = CASE h.state WHEN 'awaiting_confirmation' THEN j.confirm_by END,
    due_at = CASE h.state WHEN 'awaiting_confirmation' THEN
      least(CASE WHEN j.confirm_by > h.now THEN j.confirm_by END, h.now + make_interval(secs => h.next_in),
        {LAST_CHECK}) WHEN 'retrying' THEN h.now END,
    settled_at = CASE WHEN h.state IN ('confirmed', 'dead') THEN h.now END,
    failures = CASE WHEN h.failure IS NOT NULL THEN {with_failure("h.failure")}
      WHEN h.state IN ('dead', 'retrying') THEN {with_failure(UNCONFIRMED_STORY)} ELSE j.failures END,
    fingerprint = CASE WHEN h.state IN ('dead', 'retrying') AND h.fingerprint IS NULL
      THEN {fingerprint_of("Unconfirmed")} ELSE coalesce(h.fingerprint, j.fingerprint) END
  FROM hit h WHERE {BETWEEN} AND j.id = h.id AND h.was = 'awaiting_confirmation'
  RETURNING j.id, j.fence, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at,
    j.window_seconds, j.probe,
    j.replay_of IS NULL AND NOT j.probe AS cohort, h.was, h.since, h.now AS left_at
), moved AS (SELECT * FROM written WHERE state <> was),
counted AS ({delta(*SETTLED_ROWS, STAGE_LEFT)})
SELECT id, fence, state FROM written
"""

# A bounded number from each type, so that one without workers hides no other.
DUE = f"""
SELECT w.type, j.id, j.due_at FROM unnest(%(types)s::text[], %(limits)s::integer[]) AS w (type, n)
CROSS JOIN LATERAL (
  SELECT j.id, j.due_at FROM queues_job j WHERE j.type = w.type AND {_DUE} ORDER BY j.due_at LIMIT w.n
) AS j
ORDER BY w.type, j.due_at
"""

# A claimed check has `checks` above 0 until it answers.
ASKED = f"""
SELECT j.id, j.due_at > jobs_now() FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[])
  AND {STATE} = 'awaiting_confirmation' AND j.polled AND (j.due_at <= jobs_now() OR j.checks > 0)
"""


def claim_checks(ids: Sequence[UUID]) -> list[DueCheck]:
    """Claim the checks that are due of these jobs."""
    return [DueCheck(*row) for row in transition("check_claim", CLAIM, named(ids))]


def finish_checks(ends: Sequence[CheckEnd]) -> dict[tuple[UUID, int], JobState]:
    """Write what checks found. Shape: (id, fence) → state; a pair that is missing was decided otherwise meanwhile."""
    rows = transition("check_finish", FINISH, {**named([end.id for end in ends]), "ends": records(ends)})
    return {(job_id, fence): JobState(state) for job_id, fence, state in rows}


def due_checks(walk: Sequence[tuple[str, int]]) -> dict[str, list[tuple[UUID, dt.datetime]]]:
    """Return (id, due) of jobs whose check is due, longest ago first, for each (type, limit)."""
    found: dict[str, list[tuple[UUID, dt.datetime]]] = {}
    for name, job_id, due in execute(DUE, {"types": [w[0] for w in walk], "limits": [w[1] for w in walk]}):
        found.setdefault(name, []).append((job_id, due))
    return found


def asked_checks(ids: Sequence[UUID]) -> dict[UUID, bool]:
    """Return those of these jobs whose check has not answered so far, and whether it is under way."""
    return {row[0]: row[1] for row in execute(ASKED, {"ids": uuids(ids)})}
