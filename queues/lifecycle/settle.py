"""End runs: finish, fail, release and stop, in one fenced statement for a whole batch."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from queues.lifecycle.sql import (
    BETWEEN,
    EPOCH,
    FIRST_PLACE,
    bucket,
    delta,
    execute,
    minute,
    named,
    records,
    transition,
    uuids,
)
from queues.states import REASON_CODES, JobState


class Verdict(StrEnum):
    """How a run ended, before the row has its say."""

    CONFIRMED = "confirmed"
    """The evidence that the contract names is there."""
    FAILED = "failed"
    """An attempt is spent; `reason` set means that no other may follow."""
    AWAITING = "awaiting"
    """The handler returned and the contract wants a proof from outside; it may be there already."""
    RELEASED = "released"
    """The body never began: attempt and `begun` are given back, the fence is not."""
    PUT_OFF = "put_off"
    """The check before the body could not answer: given back like a release, and due again after a while."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one run. `failure` is {error_class, message, traceback}, redacted already.

    Of an awaited proof: `confirm_in` are the seconds to its deadline (None: until max age), `act_in` those to the next
    check or the deadline, whichever is first; `polled` says that a check is asked. `unknown`: the run failed, and
    whether its work happened is not known (a time limit, no answer, no evidence). `called`: how the dependency of its
    type did: ok, failed or slow; unused: it was not asked; None: the run tells nothing of it.
    """

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
    reference: str | None = None
    confirm_in: float | None = None
    act_in: float | None = None
    polled: bool = False
    unknown: bool = False
    called: str | None = None


FAILURES_KEPT = 20
NOTES_KEPT = 20
"""Of what came too late to count, or beside what counts."""
REJECTED = "(j.rejection ->> 'fence')::integer = j.fence"
"""A rejection of this very run came before its end."""


LAST_CHECK = "greatest(h.now + interval '1 second', j.expires_at - interval '10 seconds')"
"""When a polled job is asked at the latest: past its max age nobody asks any more."""


def left_open(ended: str, otherwise: str = "NULL") -> str:
    """Return SQL that leaves a job, which ends without its outcome where `ended` holds, for somebody to resolve.

    Not a probe: nobody replays it or has to look at it, and it goes by its age.
    """
    return f"""resolution = CASE WHEN {ended} THEN CASE WHEN j.probe THEN 'ignored' ELSE 'open' END
      ELSE {otherwise} END,
    resolved_at = CASE WHEN {ended} AND j.probe THEN h.now ELSE j.resolved_at END,
    resolved_by = CASE WHEN {ended} AND j.probe THEN 'probe' ELSE j.resolved_by END"""


def with_failure(failure: str) -> str:
    """Return SQL for a job's failures with one more, of the run that `h.now` ends; the newest are kept."""
    return (
        f"(CASE WHEN jsonb_array_length(j.failures) >= {FAILURES_KEPT} THEN j.failures - 1 ELSE j.failures END)"
        f" || ({failure} || jsonb_build_object('attempt', j.attempt, 'started_at', j.started_at,"
        " 'finished_at', h.now, 'worker', j.worker))"
    )


def fingerprint_of(words: str) -> str:
    """Return SQL for the fingerprint of a failure that no handler's error stands behind."""
    return f"left(encode(sha256(convert_to(j.type || ' {words}', 'UTF8')), 'hex'), 16)"


_REASON_CODE = "CASE m.reason " + " ".join(f"WHEN '{r}' THEN {c}" for r, c in REASON_CODES.items()) + " END"


def of_failure(measure: str, at: str, dead: str) -> tuple[str, str, str, str]:
    """Return the row that counts dead letters by what they died of, where `dead` holds: measure.reason.fingerprint.

    No bucket: the release before would put it into a histogram, whose measures are short, and its fold would stand.
    """
    cause = f"({_REASON_CODE}) || '.' || left(coalesce(m.fingerprint, ''), 16)"
    return (minute(at), f"'{measure}.' || CASE WHEN {dead} THEN {cause} ELSE '' END", "-1", f"({dead})::integer")


# What every settling statement counts. `moved` has was, since (when it came into that state), left_at, state, reason,
# ready_at, settled_at, window_seconds and `cohort` (not a probe and not a replay).
_IN_TIME = "m.settled_at <= m.ready_at + make_interval(secs => m.window_seconds)"
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
        f"(m.cohort AND m.state IN ('confirmed', 'cancelled') AND {_IN_TIME})::integer",
    ),
    (minute("m.ready_at"), "'ended'", "-1", "(m.cohort AND m.settled_at IS NOT NULL)::integer"),
    of_failure("died", "m.settled_at", "m.state = 'dead'"),
    (minute("m.settled_at"), "'late'", "-1", f"(m.state = 'confirmed' AND NOT {_IN_TIME})::integer"),
)
STAGE_LEFT = (
    minute("m.left_at"),
    "CASE m.was WHEN 'accepted' THEN 'wait' WHEN 'retrying' THEN 'backoff' ELSE 'await' END",
    bucket("m.since", "m.left_at"),
    "(m.left_at > m.since)::integer",
)
"""Of a job that nobody ran: the time in the stage that it left."""

_SAID = "coalesce(i.evidence ->> 'ref', i.reference)"
# References are compared with their like: what a callback or a check names may be another thing than what the handler
# got. One that was rejected, by its name or as its run's, stands for nothing that happened.
STANDING = """CASE WHEN j.rejection IS NULL OR j.reference IS NULL THEN j.reference
      WHEN j.rejection ->> 'ref' = j.reference OR EXISTS (SELECT FROM queues_jobreference r WHERE r.job_id = j.id
        AND r.fence = (j.rejection ->> 'fence')::integer AND r.ref = j.reference) THEN NULL ELSE j.reference END"""
"""SQL: the reference that an earlier run's handler got, unless it was rejected."""
_SECOND = f"""CASE
      WHEN j.evidence IS NULL AND j.reference IS NULL THEN NULL
      WHEN coalesce(i.evidence ->> 'kind', 'reference') = j.evidence ->> 'kind' AND {_SAID} <> j.evidence ->> 'ref'
        THEN j.evidence ->> 'ref'
      WHEN {_SAID} <> j.reference AND (i.evidence ->> 'kind') IS DISTINCT FROM 'check'
        AND (i.verdict = 'confirmed' OR ({REJECTED}) IS NOT TRUE) THEN {STANDING} END"""


def suspected(source: str, *kinds: tuple[str, str, str]) -> str:
    """Return CTEs that keep and count signs of duplicate effects in the rows of `source`, which has id, type, tier.

    Shape of a kind: its name, SQL that says whether the row `m` is one, SQL for its detail. The rows have `run`, the
    fence that it is about, `left_at` and `probe`: of a probe none is kept.
    """
    rows = ", ".join(f"('{kind}', {found}, {detail})" for kind, found, detail in kinds)
    some = " OR ".join(found for _, found, _ in kinds)
    return f"""signs AS (
  INSERT INTO queues_suspectedduplicate (type, tier, kind, job_id, fence, at, detail)
  SELECT m.type, m.tier, s.kind, m.id, m.run, m.left_at, jsonb_strip_nulls(s.detail)
  FROM {source} m CROSS JOIN LATERAL (VALUES {rows}) AS s (kind, found, detail)
  WHERE NOT m.probe AND ({some}) AND s.found ORDER BY m.id
  RETURNING type, tier, kind, at
), signs_counted AS (
  INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
  SELECT {minute("at")}, type, tier,
    CASE kind WHEN 'blind_attempt' THEN 'blind_attempts' WHEN 'second_reference' THEN 'second_references'
      WHEN 'contradiction' THEN 'contradictions' ELSE kind END, -1, count(*), 0
  FROM signs GROUP BY 1, 2, 3, 4
)"""


BLIND = ("blind_attempt", "m.blind", "jsonb_build_object('error_class', m.failure_before)")
"""Of a run that ends: it began without knowing how the one before had ended."""
BLIND_COLUMNS = "j.unknown_end AS blind, j.failures -> -1 ->> 'error_class' AS failure_before"

# The row decides together with the verdict: evidence that arrived meanwhile and a requested cancel win over a failure,
# evidence of this run wins over a cancel, a rejection of this run over whatever it returned without evidence. Rows are
# locked in id order; what another fence holds is not touched.
# The state is looked at after the lock: filtered before, the planner expects one row and joins 100 by 100.
_SETTLE = f"""
WITH item AS (
  SELECT * FROM json_to_recordset(%(ends)s::json) AS i (id uuid, fence integer, verdict text, evidence jsonb,
    result jsonb, reason text, retry_in float8, failure jsonb, fingerprint text, seconds float8, on_stale text,
    reference text, confirm_in float8, act_in float8, polled boolean, unknown boolean, called text)
), hit AS MATERIALIZED (
  SELECT i.*, j.state AS was, now.at AS now, j.rejection AS refusal, coalesce(j.entered_at, j.started_at) AS since,
    {BLIND_COLUMNS}, coalesce({REJECTED}, false) AND j.evidence IS NULL AS refused, j.evidence IS NOT NULL AS proven,
    {_SECOND} AS other_ref, CASE
      WHEN i.verdict = 'confirmed' OR j.evidence IS NOT NULL THEN 'confirmed'
      WHEN j.cancel_requested THEN 'cancelled'
      WHEN i.verdict = 'released' THEN 'accepted'
      WHEN {REJECTED} THEN CASE
        WHEN (j.rejection ->> 'retryable')::boolean AND j.attempt < j.attempt_limit THEN 'retrying' ELSE 'dead' END
      WHEN i.verdict = 'put_off' THEN 'retrying'
      WHEN i.verdict = 'awaiting' THEN 'awaiting_confirmation'
      WHEN i.reason IS NOT NULL THEN 'dead'
      WHEN j.expires_at <= now.at THEN CASE i.on_stale WHEN 'dead' THEN 'dead' ELSE 'expired' END
      WHEN j.attempt >= j.attempt_limit THEN 'dead'
      ELSE 'retrying' END AS state, CASE
      WHEN {REJECTED} THEN 'rejected'
      WHEN i.reason IS NOT NULL THEN i.reason WHEN j.expires_at <= now.at THEN 'stale'
      ELSE 'attempts_exhausted' END AS why,
    least(j.expires_at, now.at + make_interval(secs => i.confirm_in)) AS confirm_by
  FROM queues_job j JOIN item i ON i.id = j.id AND i.fence = j.fence
  CROSS JOIN (SELECT jobs_clock() AS at) AS now
  WHERE j.id = ANY(%(ids)s::uuid[])
  ORDER BY j.id FOR UPDATE OF j
), told AS (
  SELECT h.*, verdict IN ('released', 'put_off') AS given_back, {_SAID.replace("i.", "h.")} AS said,
    CASE WHEN why = 'rejected' AND state IN ('dead', 'retrying') THEN jsonb_build_object('error_class', 'Rejected',
      'message', coalesce(nullif(refusal ->> 'detail', ''), 'the outside world rejected the work'))
      ELSE failure END AS story
  FROM hit h
), moved AS (
  UPDATE queues_job j SET
    state = h.state,
    evidence = CASE h.state WHEN 'confirmed' THEN coalesce(j.evidence,
      h.evidence || jsonb_build_object('at', h.now, 'run', h.fence)) END,
    late_evidence = CASE WHEN h.proven AND h.other_ref IS NOT NULL
        AND jsonb_array_length(coalesce(j.late_evidence, '[]')) < {NOTES_KEPT}
      THEN coalesce(j.late_evidence, '[]') || jsonb_build_object('kind', coalesce(h.evidence ->> 'kind', 'reference'),
        'ref', h.said, 'run', h.fence, 'outcome', 'confirmed', 'at', h.now) ELSE j.late_evidence END,
    result = coalesce(h.result, j.result),
    reason = CASE h.state WHEN 'dead' THEN h.why WHEN 'expired' THEN 'stale' WHEN 'cancelled' THEN j.reason END,
    {left_open("h.state IN ('dead', 'expired', 'cancelled')")},
    attempt = j.attempt - h.given_back::integer,
    begun = j.begun - h.given_back::integer,
    checks = 0,
    check_failures = CASE h.verdict WHEN 'put_off' THEN least(j.check_failures + 1, 1000) ELSE 0 END,
    polled = h.polled AND h.state = 'awaiting_confirmation',
    alone = j.alone AND h.given_back,
    reference = coalesce(h.reference, j.reference),
    confirm_by = CASE h.state WHEN 'awaiting_confirmation' THEN h.confirm_by END,
    unknown_end = CASE WHEN h.given_back THEN j.unknown_end
      ELSE h.unknown AND h.why <> 'rejected' AND h.state IN ('retrying', 'dead', 'expired', 'cancelled') END,
    entered_at = h.now,
    due_at = CASE h.state WHEN 'accepted' THEN {
    FIRST_PLACE
} WHEN 'retrying' THEN h.now + make_interval(secs => h.retry_in)
      WHEN 'awaiting_confirmation' THEN least(h.confirm_by, h.now + make_interval(secs => h.act_in),
        CASE WHEN h.polled THEN {LAST_CHECK} END) END,
    finished_at = h.now,
    settled_at = CASE WHEN h.state NOT IN ('accepted', 'retrying', 'awaiting_confirmation') THEN h.now END,
    failures = CASE WHEN h.story IS NULL THEN j.failures ELSE
      {with_failure("h.story")} END,
    fingerprint = CASE WHEN h.story IS DISTINCT FROM h.failure THEN {fingerprint_of("Rejected")}
      ELSE coalesce(h.fingerprint, j.fingerprint) END
  FROM told h WHERE {BETWEEN} AND j.id = h.id AND h.was = 'processing'
  RETURNING j.id, j.fence, j.type, j.tier, j.state, j.reason, j.fingerprint, j.ready_at, j.settled_at, j.finished_at,
    j.window_seconds, h.verdict, h.given_back, h.seconds, j.probe, j.replay_of IS NULL AND NOT j.probe AS cohort,
    h.was, h.since, h.now AS left_at, j.fence AS run, h.blind AND NOT h.given_back AS blind, h.failure_before,
    h.other_ref, h.said, h.refused, h.called, j.started_at
), {
    suspected(
        "moved",
        BLIND,
        ("second_reference", "m.other_ref IS NOT NULL", "jsonb_build_object('known', m.other_ref, 'said', m.said)"),
        ("confirmed_after_rejection", "m.verdict = 'confirmed' AND m.refused", "jsonb_build_object('said', m.said)"),
    )
}, counted AS ({
    delta(
        *SETTLED_ROWS,
        (minute("m.finished_at"), "'failed'", "-1", "(m.verdict = 'failed')::integer"),
        (minute("m.finished_at"), "'run'", "jobs_bucket(m.seconds)", "(NOT m.given_back)::integer"),
    )
})REFERENCES CALLS
SELECT id, fence, state FROM moved
"""
# Without a reference of its own an end is compared with what an earlier one left, in its simple form: planning the look
# at another table costs a tenth of the time that a job alone takes.
_UNREFERRED = _SETTLE.replace("REFERENCES", "").replace(
    STANDING,
    "CASE WHEN j.rejection IS NULL OR j.rejection ->> 'ref' <> j.reference THEN j.reference END",
)
# Which run a reference names: kept beside the row, which only knows the newest one, since an older run's proof counts,
# and that of a run whose end came too late.
_REFERRED = _SETTLE.replace(
    "REFERENCES",
    """, referred AS (
  INSERT INTO queues_jobreference (type, ref, job_id, fence, at)
  SELECT j.type, i.reference, i.id, i.fence, jobs_clock() FROM item i JOIN queues_job j ON j.id = i.id
  WHERE j.id = ANY(%(ids)s::uuid[]) AND i.fence <= j.fence AND i.reference IS NOT NULL
)""",
)
# A run that began before its breaker's last change tells of the time before it, and one that began while it was half
# open is a trial, of which a slow one has failed. A trial that asked for nothing is given back.
_OF_TYPE = "JOIN queues_jobtype c ON c.name = m.type JOIN queues_dependency d ON d.name = c.dependency"
_CALLS = f""", called AS (
  INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
  SELECT date_trunc('second', m.finished_at), m.type, m.tier, 'called.' || CASE WHEN d.state <> 'half_open'
      THEN m.called WHEN m.called = 'ok' THEN 'trial_ok' ELSE 'trial_failed' END, -1, count(*), 0
  FROM moved m {_OF_TYPE}
  WHERE m.called IN ('ok', 'failed', 'slow') AND m.started_at >= d.since
    AND (m.called <> 'failed' OR m.state <> 'cancelled')
  GROUP BY 1, 2, 3, 4
), unused AS (
  UPDATE queues_dependency d SET trials_left = least(d.trial_jobs, d.trials_left + u.n)
  FROM (SELECT d.name, min(m.started_at) AS began, count(*) AS n FROM moved m {_OF_TYPE}
    WHERE (m.called = 'unused' OR m.verdict = 'released') AND d.state = 'half_open' GROUP BY 1) AS u
  WHERE d.name = u.name AND d.state = 'half_open' AND d.since <= u.began
)"""
SETTLE = {
    (referred, called): sql.replace(" CALLS", _CALLS if called else "")
    for referred, sql in ((False, _UNREFERRED), (True, _REFERRED))
    for called in (False, True)
}
"""By whether an end has a reference, and whether one tells of a dependency: most of them do neither."""

# An end whose answer was lost is written again and finds what it did itself: that is no stale write.
SUPERSEDED = """
INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
SELECT date_trunc('minute', jobs_clock()), j.type, j.tier, 'superseded', -1, count(*), 0
FROM queues_job j JOIN unnest(%(ids)s::uuid[], %(fences)s::integer[]) AS i (id, fence) ON i.id = j.id
WHERE j.id = ANY(%(ids)s::uuid[]) AND NOT j.probe
  AND (j.fence > i.fence OR (j.state = 'retrying'
    AND j.failures -> -1 ->> 'error_class' IN ('WorkerLost', 'HardTimeLimitExceeded')))
GROUP BY j.type, j.tier
"""


def settle(ends: Sequence[End]) -> dict[tuple[UUID, int], JobState]:
    """Write the ends of runs. Shape: (id, fence) → the state it led to.

    A pair that is missing was superseded: its lease was lost, and another run or a sweep decided.
    """
    called = any(end.called is not None or end.verdict is Verdict.RELEASED for end in ends)
    sql = SETTLE[any(end.reference for end in ends), called]
    rows = transition("finish", sql, {**named([end.id for end in ends]), "ends": records(ends)})
    return {(job_id, fence): JobState(state) for job_id, fence, state in rows}


def count_superseded(runs: Sequence[tuple[UUID, int]]) -> None:
    """Count (id, fence) ends that came too late: another run has the job, or a sweep gave this one up."""
    params = {"ids": uuids(run[0] for run in runs), "fences": [run[1] for run in runs]}
    execute(SUPERSEDED, params)
