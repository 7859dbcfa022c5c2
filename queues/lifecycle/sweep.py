"""Move jobs that nobody holds any more: rescue lost runs, end what waited too long for its proof or is too old."""

from collections.abc import Sequence
from uuid import UUID

from queues.lifecycle.settle import (
    BLIND,
    BLIND_COLUMNS,
    REJECTED,
    SETTLED_ROWS,
    STAGE_LEFT,
    fingerprint_of,
    left_open,
    suspected,
    with_failure,
)
from queues.lifecycle.sql import BETWEEN, FIRST_PLACE, STATE, bucket, delta, execute, minute, named, transition, uuids
from queues.states import JobState

# The contract of the job's own version; a version without a snapshot falls back to the newest one, and a job whose
# type was deleted beside its uncommitted accept still ends, by the defaults.
POLICY = """
  LEFT JOIN queues_jobtype c ON c.name = j.type
  LEFT JOIN queues_contractrevision r ON r.job_type_id = j.type AND r.version = j.contract_version
"""
REFUSED = f"({REJECTED} AND NOT (j.rejection ->> 'retryable')::boolean)"
_LOST_STORY = f"""CASE WHEN {REFUSED} THEN jsonb_build_object('error_class', 'Rejected',
      'message', coalesce(nullif(j.rejection ->> 'detail', ''), 'the outside world rejected the work'))
    ELSE jsonb_build_object('error_class', 'WorkerLost',
      'message', 'the process that ran this job is gone; whether the work happened is not known') END"""
UNCONFIRMED_STORY = """jsonb_build_object('error_class', 'Unconfirmed',
      'message', 'the handler returned, and no proof came in time')"""

LOST = "SELECT id FROM queues_job WHERE state = 'processing' AND due_at < jobs_now() ORDER BY due_at LIMIT %(limit)s"

# A lost run costs a crash, not an attempt. Only a run that was alone in its chunk counts towards poison: its
# neighbours may have killed the others. The next run of a lost job is alone, so that the culprit is found.
RESCUE = f"""
WITH named AS (SELECT * FROM unnest(%(dead)s::uuid[], %(fences)s::integer[]) AS n (id, fence)),
hit AS MATERIALIZED (
  SELECT j.id, j.alone, now.at AS now, coalesce(j.entered_at, j.started_at) AS since, {BLIND_COLUMNS}, CASE
      WHEN j.evidence IS NOT NULL THEN 'confirmed'
      WHEN j.cancel_requested THEN 'cancelled'
      WHEN {REFUSED} THEN 'dead'
      WHEN coalesce(r.fields ->> 'on_worker_lost', c.on_worker_lost) = 'dead' THEN 'dead'
      WHEN %(blame)s AND j.crashes + j.alone::integer
        >= coalesce((r.fields ->> 'poison_after')::integer, c.poison_after, 3) THEN 'dead'
      ELSE 'retrying' END AS state,
    CASE WHEN {REFUSED} THEN 'rejected' ELSE 'poison' END AS why
  FROM queues_job j {POLICY} CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'processing'
    AND (j.due_at < jobs_now() OR (j.id, j.fence) IN (SELECT id, fence FROM named))
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
), moved AS (
  UPDATE queues_job j SET state = h.state, attempt = j.attempt - 1,
    crashes = j.crashes + (h.alone AND %(blame)s)::integer,
    alone = h.state = 'retrying', finished_at = h.now, entered_at = h.now,
    unknown_end = h.state <> 'confirmed' AND h.why <> 'rejected',
    due_at = CASE h.state WHEN 'retrying' THEN {FIRST_PLACE} END,
    settled_at = CASE WHEN h.state <> 'retrying' THEN h.now END,
    reason = CASE h.state WHEN 'dead' THEN h.why WHEN 'cancelled' THEN j.reason END,
    {left_open("h.state IN ('dead', 'cancelled')")},
    fingerprint = CASE WHEN h.state <> 'dead' THEN j.fingerprint
      WHEN h.why = 'rejected' THEN {fingerprint_of("Rejected")} ELSE {fingerprint_of("WorkerLost")} END,
    failures = {with_failure(_LOST_STORY)}
  FROM hit h WHERE {BETWEEN} AND j.id = h.id
  RETURNING j.id, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at, j.finished_at,
    j.window_seconds,
    j.probe, j.replay_of IS NULL AND NOT j.probe AS cohort, 'processing' AS was, h.since, h.now AS left_at,
    j.fence AS run, h.blind, h.failure_before
), {suspected("moved", BLIND)}, counted AS ({
    delta(
        *SETTLED_ROWS,
        (minute("m.finished_at"), "'lost'", "-1", "1"),
        (minute("m.finished_at"), "'lost'", bucket("m.since", "m.left_at"), "1"),
    )
})
SELECT id, state FROM moved
"""

STALE = """
SELECT id FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation')
  AND expires_at <= jobs_now() ORDER BY expires_at LIMIT %(limit)s
"""

EXPIRE = f"""
WITH hit AS MATERIALIZED (
  SELECT j.id, j.state AS was, now.at AS now, coalesce(j.entered_at, j.ready_at) AS since, CASE
      WHEN j.state = 'awaiting_confirmation' THEN 'dead'
      WHEN coalesce(r.fields ->> 'on_stale', c.on_stale) = 'dead' THEN 'dead' ELSE 'expired' END AS state
  FROM queues_job j {POLICY} CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} IN ('accepted', 'retrying', 'awaiting_confirmation')
    AND j.expires_at <= jobs_now()
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
), moved AS (
  UPDATE queues_job j SET state = h.state, due_at = NULL, settled_at = h.now, entered_at = h.now,
    {left_open("true")}, unknown_end = j.unknown_end OR h.was = 'awaiting_confirmation',
    reason = CASE h.was WHEN 'awaiting_confirmation' THEN 'unconfirmed' ELSE 'stale' END
  FROM hit h WHERE {BETWEEN} AND j.id = h.id
  RETURNING j.id, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at, j.window_seconds, j.probe,
    j.replay_of IS NULL AND NOT j.probe AS cohort, h.was, h.since, h.now AS left_at
), counted AS ({delta(*SETTLED_ROWS, STAGE_LEFT)})
SELECT id, state FROM moved
"""

CHECKS_LOST_MOST = 3
"""Checks in a row without any answer, beyond the attempts of the contract: such a check kills its worker."""

# A job that is polled is not given up by the clock alone: the check that is due at its deadline has the last word.
_WAITED_ENOUGH = f"""j.due_at <= jobs_now() AND CASE WHEN j.polled THEN j.checks >= j.attempt_limit + {CHECKS_LOST_MOST}
    ELSE coalesce(j.confirm_by, j.expires_at) <= jobs_now() END"""

OVERDUE = f"""
SELECT j.id FROM queues_job j WHERE j.state = 'awaiting_confirmation' AND {_WAITED_ENOUGH}
ORDER BY j.due_at LIMIT %(limit)s
"""

GIVE_UP = f"""
WITH hit AS MATERIALIZED (
  SELECT j.id, now.at AS now, coalesce(j.entered_at, j.finished_at) AS since, CASE
      WHEN coalesce(r.fields ->> 'on_unconfirmed', c.on_unconfirmed) = 'retry' AND j.attempt < j.attempt_limit
        AND j.expires_at > now.at THEN 'retrying' ELSE 'dead' END AS state
  FROM queues_job j {POLICY} CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'awaiting_confirmation' AND {_WAITED_ENOUGH}
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
), moved AS (
  UPDATE queues_job j SET state = h.state, checks = 0, check_failures = 0, polled = false, confirm_by = NULL,
    entered_at = h.now, unknown_end = true,
    due_at = CASE h.state WHEN 'retrying' THEN h.now END,
    settled_at = CASE h.state WHEN 'dead' THEN h.now END,
    reason = CASE h.state WHEN 'dead' THEN 'unconfirmed' END,
    {left_open("h.state = 'dead'")},
    fingerprint = {fingerprint_of("Unconfirmed")},
    failures = {with_failure(UNCONFIRMED_STORY)}
  FROM hit h WHERE {BETWEEN} AND j.id = h.id
  RETURNING j.id, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at, j.window_seconds, j.probe,
    j.replay_of IS NULL AND NOT j.probe AS cohort, 'awaiting_confirmation' AS was, h.since,
    h.now AS left_at
), counted AS ({delta(*SETTLED_ROWS, STAGE_LEFT)})
SELECT id, state FROM moved
"""


def lost(*, limit: int) -> list[UUID]:
    """Return jobs whose lease ran out, longest ago first."""
    return [row[0] for row in execute(LOST, {"limit": limit})]


def rescue(
    ids: Sequence[UUID], *, dead_runs: Sequence[tuple[UUID, int]] = (), blame: bool = True
) -> dict[UUID, JobState]:
    """Give up runs whose lease ran out, and those (id, fence) pairs whose process is known to be dead.

    `blame` is False when we ended the process ourselves: that says nothing against the job.
    """
    rows = transition(
        "rescue",
        RESCUE,
        {
            **named(ids),
            "dead": uuids(run[0] for run in dead_runs),
            "fences": [run[1] for run in dead_runs],
            "blame": blame,
        },
    )
    return {job_id: JobState(state) for job_id, state in rows}


def stale(*, limit: int) -> list[UUID]:
    """Return waiting jobs past their max age."""
    return [row[0] for row in execute(STALE, {"limit": limit})]


def expire(ids: Sequence[UUID]) -> dict[UUID, JobState]:
    """End jobs past their max age, as their contract says."""
    return {job_id: JobState(state) for job_id, state in transition("expire", EXPIRE, {**named(ids)})}


def overdue(*, limit: int) -> list[UUID]:
    """Return jobs whose proof did not come by its deadline, or whose check never answers."""
    return [row[0] for row in execute(OVERDUE, {"limit": limit})]


def give_up_waiting(ids: Sequence[UUID]) -> dict[UUID, JobState]:
    """End the wait for a proof as the contract's `on_unconfirmed` says: run again, or dead, `unconfirmed`."""
    return {job_id: JobState(state) for job_id, state in transition("give_up", GIVE_UP, {**named(ids)})}
