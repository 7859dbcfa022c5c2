"""Evidence from outside: confirm, reject, keep what came too early, too late or against what is known.

The row decides under its lock (DESIGN.md section 5); finding the job, and its lineage, is `queues.confirmation`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from queues.lifecycle.settle import NOTES_KEPT as NOTES_KEPT
from queues.lifecycle.settle import (
    SETTLED_ROWS,
    STAGE_LEFT,
    STANDING,
    fingerprint_of,
    left_open,
    suspected,
    with_failure,
)
from queues.lifecycle.sql import BETWEEN, STATE, delta, named, records, transition
from queues.states import JobState


class Applied(StrEnum):
    """What a proof did."""

    CONFIRMED = "confirmed"
    KEPT = "kept"
    """Stored in the row of a run that still goes on; it counts when that one ends."""
    REJECTED = "rejected"
    """Dead now."""
    RETRYING = "retrying"
    """Rejected, and another attempt follows."""
    DUPLICATE = "duplicate"
    """It says what is known."""
    LATE = "late"
    """The job has ended otherwise; kept as late evidence."""
    CONTRADICTION = "contradiction"
    """A rejection of what is confirmed: kept and counted, nothing changed."""
    SUPERSEDED = "superseded"
    """A rejection of a run that is no longer the newest, or of nobody knows which; kept, nothing changed."""
    PENDING = "pending"
    """Its reference matches no job so far: in the inbox."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One piece of evidence about one job. `fence` None means its current run; with `root` it counts for a job of that
    lineage only. Units: `retry_in` in seconds.
    """

    id: UUID
    positive: bool
    kind: str
    ref: str | None = None
    detail: str = ""
    retryable: bool = False
    fence: int | None = None
    retry_in: float = 0.0
    by: str | None = None
    root: UUID | None = None


@dataclass(frozen=True, kw_only=True)
class Proven:
    """What became of it. `was`: the state before. `replayed_by` is set where the lineage goes on; `heard`: kept before,
    word for word.
    """

    id: UUID
    applied: Applied
    state: JobState
    was: JobState
    replayed_by: UUID | None
    root: UUID
    heard: bool


_SAID = """jsonb_strip_nulls(jsonb_build_object('kind', h.kind, 'ref', h.ref, 'detail', nullif(h.detail, ''),
      'run', h.run, 'by', h.by))"""
_STORY = """jsonb_build_object('error_class', 'Rejected',
      'message', coalesce(nullif(h.detail, ''), 'the outside world rejected the work'))"""

# The references that are known of this kind, what counts first. A subquery of the row, so that it is read again when
# the lock was waited for; a join would keep what it saw before.
_REFERENCES = f"""ARRAY(SELECT e ->> 'ref' FROM jsonb_array_elements(
      jsonb_build_array(coalesce(j.evidence, '{{}}') || '{{"outcome": "confirmed"}}') || coalesce(j.late_evidence, '[]')
      || jsonb_build_array(jsonb_build_object('kind', 'reference', 'outcome', 'confirmed', 'ref', {STANDING}))) AS e
      WHERE e ->> 'outcome' = 'confirmed' AND e ->> 'kind' = i.kind AND e ->> 'ref' IS NOT NULL)"""

CONFIRM = f"""
WITH item AS (
  SELECT * FROM json_to_recordset(%(proofs)s::json) AS i (id uuid, positive boolean, kind text, ref text, detail text,
    retryable boolean, fence integer, retry_in float8, by text, root uuid)
), hit AS MATERIALIZED (
  SELECT i.*, j.state AS was, now.at AS now, coalesce(i.fence, j.fence) AS run, j.replayed_by, j.root AS lineage,
    j.evidence ->> 'ref' AS known, coalesce(j.late_evidence, '[]') AS notes,
    coalesce(j.entered_at, j.ready_at) AS since, {_REFERENCES} AS refs, j.evidence ->> 'kind' AS known_kind,
    coalesce(i.positive AND (j.reason = 'rejected' OR coalesce(i.fence, j.fence) = (j.rejection ->> 'fence')::integer)
      AND j.evidence IS NULL AND NOT coalesce(j.late_evidence, '[]') @> '[{{"outcome": "confirmed"}}]', false)
      AS refused, CASE
      WHEN i.positive THEN CASE
        WHEN {STATE} IN ('accepted', 'retrying', 'awaiting_confirmation') THEN 'confirmed'
        WHEN {STATE} = 'processing' AND j.evidence IS NULL THEN 'kept'
        WHEN {STATE} IN ('processing', 'confirmed') THEN 'duplicate'
        ELSE 'late' END
      WHEN i.fence <> j.fence OR {STATE} = 'accepted' THEN 'superseded'
      WHEN i.fence IS NULL AND i.kind = 'callback' AND j.begun > 1 AND j.fence > 1 THEN 'superseded'
      WHEN j.evidence IS NOT NULL THEN 'contradiction'
      WHEN (j.rejection ->> 'fence')::integer = j.fence THEN 'duplicate'
      WHEN {STATE} = 'processing' THEN 'kept'
      WHEN {STATE} IN ('dead', 'expired', 'cancelled')
        THEN CASE j.reason WHEN 'rejected' THEN 'duplicate' ELSE 'late' END
      WHEN i.retryable AND j.attempt < j.attempt_limit THEN 'retrying'
      ELSE 'rejected' END AS applied
  FROM queues_job j JOIN item i ON i.id = j.id AND coalesce(i.root, j.root) = j.root
  CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[])
  ORDER BY j.id FOR UPDATE OF j
), said AS (
  -- A second reference for one business action is kept as well: it may mean that the action happened twice.
  -- What a handler got is no other word than a callback's, where that one counts: nothing would be said twice.
  SELECT h.*, applied IN ('late', 'contradiction', 'superseded') OR (applied = 'duplicate' AND positive
      AND ref IS NOT NULL AND ref IS DISTINCT FROM known AND (kind <> 'reference' OR known_kind = kind)) AS note,
    coalesce(positive AND cardinality(refs) > 0 AND ref <> ALL (refs), false) AS second,
    {_SAID} AS said, CASE WHEN positive THEN 'confirmed' ELSE 'rejected' END AS outcome
  FROM hit h
), told AS (
  SELECT h.*, NOT note OR jsonb_array_length(notes) < {
    NOTES_KEPT
} AS room, note AND EXISTS (SELECT FROM jsonb_array_elements(notes) AS e
    WHERE e - 'at' = said || jsonb_build_object('outcome', outcome)) AS heard
  FROM said h
), changed AS (
  UPDATE queues_job j SET
    state = CASE h.applied WHEN 'confirmed' THEN 'confirmed' WHEN 'rejected' THEN 'dead' WHEN 'retrying' THEN 'retrying'
      ELSE j.state END,
    evidence = CASE WHEN h.positive AND h.applied IN ('confirmed', 'kept')
      THEN h.said || jsonb_build_object('ref', h.ref, 'at', h.now, 'late', false) ELSE j.evidence END,
    rejection = CASE WHEN NOT h.positive AND h.applied IN ('kept', 'rejected', 'retrying')
      THEN h.said || jsonb_build_object('fence', h.run, 'retryable', h.retryable, 'at', h.now) ELSE j.rejection END,
    reason = CASE h.applied WHEN 'rejected' THEN 'rejected' ELSE j.reason END,
    {left_open("h.applied = 'rejected'", "j.resolution")},
    due_at = CASE WHEN h.applied IN ('confirmed', 'rejected') THEN NULL
      WHEN h.applied = 'retrying' AND h.was = 'awaiting_confirmation' THEN h.now + make_interval(secs => h.retry_in)
      ELSE j.due_at END,
    confirm_by = CASE WHEN h.applied IN ('confirmed', 'rejected', 'retrying') THEN NULL ELSE j.confirm_by END,
    entered_at = CASE WHEN h.applied IN ('confirmed', 'rejected') OR (h.applied = 'retrying' AND h.was <> 'retrying')
      THEN h.now ELSE j.entered_at END,
    unknown_end = j.unknown_end AND h.applied NOT IN ('confirmed', 'rejected', 'retrying'),
    polled = j.polled AND h.applied NOT IN ('confirmed', 'rejected', 'retrying'),
    settled_at = CASE WHEN h.applied IN ('confirmed', 'rejected') THEN h.now ELSE j.settled_at END,
    failures = CASE WHEN h.applied IN ('rejected', 'retrying') THEN
      {with_failure(_STORY)} ELSE j.failures END,
    fingerprint = CASE WHEN h.applied IN ('rejected', 'retrying') THEN {fingerprint_of("Rejected")}
      ELSE j.fingerprint END,
    late_evidence = CASE WHEN h.note AND jsonb_array_length(h.notes) < {NOTES_KEPT}
      THEN h.notes || jsonb_build_array(h.said || jsonb_build_object('outcome', h.outcome, 'at', h.now))
      ELSE j.late_evidence END
  FROM told h WHERE {BETWEEN} AND j.id = h.id
    AND ((h.note AND NOT h.heard) OR h.applied IN ('confirmed', 'kept', 'rejected', 'retrying'))
  RETURNING j.id, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at, j.window_seconds, j.probe,
    j.replay_of IS NULL AND NOT j.probe AS cohort, h.was, h.applied, h.since, h.now AS left_at, h.run, h.second,
    h.refused, h.known, h.refs[1] AS first_ref, h.ref, h.detail, h.room
), moved AS (SELECT * FROM changed WHERE state <> was),
counted AS ({delta(*SETTLED_ROWS, STAGE_LEFT)}), noted AS (
  INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
  SELECT date_trunc('minute', left_at), type, tier, 'late_evidence', -1, 1, 0 FROM changed
  WHERE applied = 'late' AND NOT probe
), {
    suspected(
        "changed",
        (
            "contradiction",
            "m.applied = 'contradiction' AND m.room",
            "jsonb_build_object('known', m.known, 'said', m.ref, 'detail', nullif(m.detail, ''))",
        ),
        ("second_reference", "m.second AND m.room", "jsonb_build_object('known', m.first_ref, 'said', m.ref)"),
        ("confirmed_after_rejection", "m.refused AND m.room", "jsonb_build_object('said', m.ref)"),
    )
}
SELECT t.id, t.applied, coalesce(c.state, t.was), t.was, t.replayed_by, t.lineage, t.heard
FROM told t LEFT JOIN changed c ON c.id = t.id
"""


def confirm(proofs: Sequence[Proof]) -> list[Proven]:
    """Apply evidence, at most one piece for each job. A job that does not come back is not there."""
    rows = transition("confirm", CONFIRM, {**named([proof.id for proof in proofs]), "proofs": records(proofs)})
    return [
        Proven(
            id=i,
            applied=Applied(applied),
            state=JobState(state),
            was=JobState(was),
            replayed_by=child,
            root=root,
            heard=heard,
        )  # fmt: skip
        for i, applied, state, was, child, root, heard in rows
    ]
