"""What a person or a producer does to a job: cancel it, replay it, close its dead letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from queues.lifecycle.accept import idempotency_key
from queues.lifecycle.settle import SETTLED_ROWS, STAGE_LEFT, left_open, of_failure
from queues.lifecycle.sql import BETWEEN, EPOCH, STATE, delta, execute, minute, named, transition
from queues.states import JobState, Reason


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What a cancel did to one job. `was`: the state before. `may_have_acted`: a run may have begun."""

    id: UUID
    state: JobState
    was: JobState
    may_have_acted: bool


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What an edited replay changes: the payload with its request hash (hex), or the key, or both.

    A changed key makes a different job: another idempotency key, a lineage of its own, nothing known of any effect.
    """

    payload: str | None = None
    request_hash: str
    dedupe_key: str | None = None


CANCEL = f"""
WITH hit AS MATERIALIZED (
  SELECT j.id, j.state AS was, now.at AS now, coalesce(j.entered_at, j.ready_at) AS since
  FROM queues_job j CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[])
    AND ({STATE} IN ('accepted', 'retrying', 'awaiting_confirmation')
      OR ({STATE} = 'processing' AND NOT j.cancel_requested))
    AND (%(states)s::text[] IS NULL OR j.state = ANY(%(states)s::text[]))
  ORDER BY j.id FOR UPDATE OF j
), changed AS (
  UPDATE queues_job j SET cancel_requested = true,
    state = CASE h.was WHEN 'processing' THEN 'processing' ELSE 'cancelled' END,
    due_at = CASE h.was WHEN 'processing' THEN j.due_at END,
    settled_at = CASE h.was WHEN 'processing' THEN NULL ELSE h.now END,
    entered_at = CASE h.was WHEN 'processing' THEN j.entered_at ELSE h.now END,
    unknown_end = j.unknown_end OR h.was = 'awaiting_confirmation',
    reason = %(reason)s,
    {left_open("h.was <> 'processing'")}
  FROM hit h WHERE {BETWEEN} AND j.id = h.id
  RETURNING j.id, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at,
    j.window_seconds, j.begun, j.probe,
    j.replay_of IS NULL AND NOT j.probe AS cohort, h.was, h.since, h.now AS left_at
), moved AS (SELECT * FROM changed WHERE state = 'cancelled'),
counted AS ({delta(*SETTLED_ROWS, STAGE_LEFT)})
SELECT id, state, was, begun > 0 FROM changed
"""

RETRY_NOW = f"""
WITH hit AS (
  SELECT j.id FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'retrying'
    AND j.due_at > jobs_clock()
  ORDER BY j.id FOR UPDATE OF j
)
UPDATE queues_job j SET due_at = jobs_clock() FROM hit WHERE {BETWEEN} AND j.id = hit.id
RETURNING j.id
"""

CLOSE = f"""
WITH hit AS MATERIALIZED (
  SELECT j.id FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} = 'dead' AND j.resolution = 'open'
  ORDER BY j.id FOR UPDATE OF j
), moved AS (
  UPDATE queues_job j SET resolution = %(resolution)s, resolved_at = jobs_clock(), resolved_by = %(by)s
  FROM hit h WHERE {BETWEEN} AND j.id = h.id
  RETURNING j.id, j.type, j.tier, j.probe, j.reason, j.fingerprint, j.resolved_at
), counted AS ({delta((EPOCH, "'open.dead'", "-1", "-1"), of_failure("resolved", "m.resolved_at", "true"))})
SELECT id FROM moved
"""

# Mark the parents (only once, only the newest of a lineage), move their keys while they still point to them, insert the
# children: all or nothing for each. The key keeps its first hash and the child its parent's idempotency key, so that
# the producer's own retries and the provider still recognise the action. Under another key it is another action.
# In an ordered group the child takes its parent's place.
# A bulk replay leaves locked rows for its next round, and puts its children behind live work.
_REPLAY = f"""
WITH parent AS MATERIALIZED (
  SELECT j.*, jobs_uuid7() AS child, now.at AS now, c.version, c.tier_id, c.max_attempts, c.window_seconds AS promise,
    c.max_age_seconds, c.dedupe_window_seconds, c.ordered, %(key)s::text IS NOT NULL AS other
  FROM queues_job j JOIN queues_jobtype c ON c.name = j.type CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[]) AND {STATE} IN ('dead', 'expired', 'cancelled') AND j.replayed_by IS NULL
    AND j.resolution = 'open' AND j.erased_at IS NULL AND c.enabled
  ORDER BY j.id FOR UPDATE OF j LOCKED
), key AS (
  UPDATE queues_dedupekey k SET job_id = h.child FROM (
    SELECT k.type, k.key, p.child FROM parent p JOIN queues_dedupekey k
      ON NOT p.other AND k.type = p.type AND k.key = p.dedupe_key AND k.job_id = p.id
    ORDER BY k.type, k.key FOR UPDATE OF k) AS h
  WHERE k.type = h.type AND k.key = h.key RETURNING k.job_id
), fresh AS (
  INSERT INTO queues_dedupekey (type, key, request_hash, job_id, accepted_at, expires_at)
  SELECT p.type, %(key)s, decode(%(request_hash)s, 'hex'), p.child, p.now,
    CASE WHEN p.dedupe_window_seconds > 0 THEN p.now + make_interval(secs => p.dedupe_window_seconds) END
  FROM parent p WHERE p.other
  ON CONFLICT (type, key) DO NOTHING RETURNING job_id
), marked AS (
  UPDATE queues_job j SET replayed_by = p.child, resolution = 'replayed', resolved_at = p.now, resolved_by = %(by)s
  FROM parent p LEFT JOIN (TABLE key UNION ALL TABLE fresh) AS held ON held.job_id = p.child
  WHERE {BETWEEN} AND j.id = p.id AND (held.job_id IS NOT NULL OR (p.dedupe_key IS NULL AND NOT p.other))
  RETURNING j.id, j.type, j.tier, j.state, j.probe, j.reason, j.fingerprint, j.resolved_at
), child AS (
  INSERT INTO queues_job (id, type, tier, priority, contract_version, payload, request_hash, dedupe_key,
    idempotency_key, "group", attempt_limit, window_seconds, accepted_at, ready_at, entered_at, due_at, expires_at,
    root, replay_of, begun, reference, unknown_end, trace, seq)
  SELECT p.child, p.type, p.tier_id, coalesce(%(priority)s::smallint, p.priority), p.version,
    coalesce(%(payload)s::json, p.payload), coalesce(decode(%(request_hash)s, 'hex'), p.request_hash),
    coalesce(%(key)s, p.dedupe_key),
    CASE WHEN p.other THEN {idempotency_key("p.type", "%(key)s::text")} ELSE p.idempotency_key END,
    p."group", p.max_attempts, p.promise, p.now, p.now, p.now, p.now, p.now + make_interval(secs => p.max_age_seconds),
    CASE WHEN p.other THEN p.child ELSE p.root END, p.id, CASE WHEN p.other THEN 0 ELSE p.begun END,
    CASE WHEN p.other OR p.reason IS NOT DISTINCT FROM 'rejected' THEN NULL ELSE p.reference END,
    p.unknown_end AND NOT p.other, p.trace, CASE WHEN p.ordered AND p."group" IS NOT NULL THEN
      coalesce(CASE WHEN NOT p.other THEN p.seq END, nextval('queues_job_seq')) END
  FROM parent p JOIN marked ON marked.id = p.id
  RETURNING id, type, tier, probe, accepted_at, replay_of
), moved AS (
  SELECT type, tier, probe, CASE state WHEN 'dead' THEN -1 ELSE 0 END AS dead, 0 AS born, resolved_at AS at, reason,
    fingerprint
  FROM marked
  UNION ALL SELECT type, tier, probe, 0, 1, accepted_at, NULL, NULL FROM child
), counted AS ({
    delta(
        (EPOCH, "'open.dead'", "-1", "m.dead"),
        (EPOCH, "'open.accepted'", "-1", "m.born"),
        (minute("m.at"), "'replayed'", "-1", "m.born"),
        of_failure("resolved", "m.at", "m.dead = -1"),
    )
})
SELECT replay_of, id FROM child
"""
REPLAY = _REPLAY.replace(" LOCKED", "")
REPLAY_MANY = _REPLAY.replace("OF j LOCKED", "OF j SKIP LOCKED")


def cancel(ids: Sequence[UUID], *, reason: Reason, states: Sequence[JobState] | None = None) -> list[Cancelled]:
    """Cancel waiting jobs and ask running ones to stop, or only those in `states`.

    A job that does not come back was settled or asked before, or is in another state.
    """
    only = None if states is None else [state.value for state in states]
    rows = transition("cancel", CANCEL, {**named(ids), "reason": reason.value, "states": only})
    return [Cancelled(id=i, state=JobState(s), was=JobState(was), may_have_acted=acted) for i, s, was, acted in rows]


def retry_now(ids: Sequence[UUID]) -> set[UUID]:
    """Make the next attempt of retrying jobs due at once; returns those that were not due yet."""
    return {row[0] for row in execute(RETRY_NOW, named(ids))}


def close_dead_letters(ids: Sequence[UUID], *, resolution: str, by: str) -> set[UUID]:
    """Resolve open dead letters without running them again; returns those that were still open."""
    rows: list[tuple[Any, ...]] = execute(CLOSE, {**named(ids), "resolution": resolution, "by": by})
    return {row[0] for row in rows}


def replay(job_id: UUID, *, by: str, edit: Edit | None = None) -> UUID | None:
    """Accept the child of a dead, expired or cancelled job; None when somebody was faster or its key is another's."""
    params = {
        "by": by,
        "payload": edit.payload if edit else None,
        "request_hash": edit.request_hash if edit else None,
        "key": edit.dedupe_key if edit else None,
        "priority": None,
    }
    rows = transition("replay", REPLAY, {**named([job_id]), **params})
    return rows[0][1] if rows else None


def replay_many(ids: Sequence[UUID], *, by: str, priority: int) -> dict[UUID, UUID]:
    """Accept the children of many jobs, as they were. Shape: job → child, of those that could be replayed now.

    A row that somebody else holds is left out as well: it is to be asked for again.
    """
    params = {"by": by, "payload": None, "request_hash": None, "key": None, "priority": priority}
    return dict(transition("replay_many", REPLAY_MANY, {**named(ids), **params}))
