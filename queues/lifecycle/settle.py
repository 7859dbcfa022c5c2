"""End runs: finish, fail, release and stop, in one fenced statement for a whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from queues.lifecycle.sql import BETWEEN, EPOCH, delta, execute, minute, named, records
from queues.states import REASON_CODES, JobState


class Verdict(StrEnum):
    """How a run ended, before the row has its say."""

    CONFIRMED = "confirmed"
    """The evidence that the contract names is there."""
    FAILED = "failed"
    """An attempt is spent; `reason` set means that no other may follow."""
    RELEASED = "released"
    """The body never began: attempt and `begun` are given back, the fence is not."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of one run. `failure` is {error_class, message, traceback}, redacted already."""

    id: UUID
    fence: int
    verdict: Verdict
    evidence: dict[str, Any] | None = None
    result: Any = None
    reason: str | None = None
    retry_in: float = 0.0
    failure: dict[str, Any] | None = None
    fingerprint: str | None = None
    seconds: float = 0.0
    on_stale: str = "expire"


FAILURES_KEPT = 20
_REASON_CODE = "CASE m.reason " + " ".join(f"WHEN '{r}' THEN {c}" for r, c in REASON_CODES.items()) + " END"

# What every settling statement counts. `moved` has was, state, reason, ready_at, settled_at, window_seconds and
# `cohort` (not a probe and not a replay).
SETTLED_ROWS: tuple[tuple[str, str, str, str], ...] = (
    (EPOCH, "'open.' || m.was", "-1", "-1"),
    (EPOCH, "'open.' || m.state", "-1", "(m.state <> ALL ('{confirmed,expired,cancelled}'))::integer"),
    (minute("m.settled_at"), "m.state", "-1", "1"),
    (minute("m.settled_at"), "'dead'", _REASON_CODE, "(m.state = 'dead')::integer"),
    (
        minute("m.settled_at"),
        "'lag'",
        "jobs_bucket(extract(epoch FROM m.settled_at - m.ready_at)::float8)",
        "(m.state = 'confirmed' AND NOT m.probe)::integer",
    ),
    (
        minute("m.ready_at"),
        "CASE m.state WHEN 'confirmed' THEN 'in_window' ELSE 'excluded' END",
        "-1",
        "(m.cohort AND m.state IN ('confirmed', 'cancelled')"
        " AND m.settled_at <= m.ready_at + make_interval(secs => m.window_seconds))::integer",
    ),
)

# The row decides together with the verdict: evidence that arrived meanwhile and a requested cancel win over a failure,
# evidence of this run wins over a cancel. Rows are locked in id order; what another fence holds is not touched.
# The state is looked at after the lock: filtered before, the planner expects one row and joins 100 by 100.
SETTLE = f"""
WITH item AS (
  SELECT * FROM json_to_recordset(%(ends)s::json) AS i (id uuid, fence integer, verdict text, evidence jsonb,
    result jsonb, reason text, retry_in float8, failure jsonb, fingerprint text, seconds float8, on_stale text)
), hit AS MATERIALIZED (
  SELECT i.*, j.state AS was, j.attempt, j.started_at, j.worker, now.at AS now, CASE
      WHEN i.verdict = 'confirmed' OR j.evidence IS NOT NULL THEN 'confirmed'
      WHEN j.cancel_requested THEN 'cancelled'
      WHEN i.verdict = 'released' THEN 'accepted'
      WHEN i.reason IS NOT NULL THEN 'dead'
      WHEN j.expires_at <= now.at THEN CASE i.on_stale WHEN 'dead' THEN 'dead' ELSE 'expired' END
      WHEN j.attempt >= j.attempt_limit THEN 'dead'
      ELSE 'retrying' END AS state, CASE
      WHEN i.reason IS NOT NULL THEN i.reason WHEN j.expires_at <= now.at THEN 'stale'
      ELSE 'attempts_exhausted' END AS why
  FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence
  CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[])
  ORDER BY j.id FOR UPDATE OF j
), moved AS (
  UPDATE queues_job j SET
    state = h.state,
    evidence = CASE h.state WHEN 'confirmed' THEN coalesce(j.evidence,
      h.evidence || jsonb_build_object('at', h.now)) END,
    result = coalesce(h.result, j.result),
    reason = CASE h.state WHEN 'dead' THEN h.why WHEN 'expired' THEN 'stale' WHEN 'cancelled' THEN j.reason END,
    resolution = CASE WHEN h.state IN ('dead', 'expired', 'cancelled') THEN 'open' END,
    attempt = j.attempt - (h.verdict = 'released')::integer,
    begun = j.begun - (h.verdict = 'released')::integer,
    alone = false,
    due_at = CASE h.state WHEN 'accepted' THEN h.now WHEN 'retrying' THEN h.now + make_interval(secs => h.retry_in) END,
    finished_at = h.now,
    settled_at = CASE WHEN h.state NOT IN ('accepted', 'retrying') THEN h.now END,
    failures = CASE WHEN h.failure IS NULL THEN j.failures ELSE
      (CASE WHEN jsonb_array_length(j.failures) >= {FAILURES_KEPT} THEN j.failures - 1 ELSE j.failures END)
      || (h.failure || jsonb_build_object('attempt', h.attempt, 'started_at', h.started_at,
        'finished_at', h.now, 'worker', h.worker)) END,
    fingerprint = coalesce(h.fingerprint, j.fingerprint)
  FROM hit h WHERE {BETWEEN} AND j.id = h.id AND h.was = 'processing'
  RETURNING j.id, j.fence, j.type, j.tier, j.state, j.reason, j.ready_at, j.settled_at, j.finished_at,
    j.window_seconds, h.verdict, h.seconds, j.probe, j.replay_of IS NULL AND NOT j.probe AS cohort,
    h.was
), counted AS ({
    delta(
        *SETTLED_ROWS,
        (minute("m.finished_at"), "'failed'", "-1", "(m.verdict = 'failed')::integer"),
        (minute("m.finished_at"), "'run'", "jobs_bucket(m.seconds)", "(m.verdict <> 'released')::integer"),
    )
})
SELECT id, fence, state FROM moved
"""


def settle(ends: Sequence[End]) -> dict[tuple[UUID, int], JobState]:
    """Write the ends of runs. Shape: (id, fence) → the state it led to.

    A pair that is missing was superseded: its lease was lost, and another run or a sweep decided.
    """
    rows = execute(SETTLE, {**named([end.id for end in ends]), "ends": records(ends)})
    return {(job_id, fence): JobState(state) for job_id, fence, state in rows}
