"""Probes: jobs of our own through the real path, begun by schedule or by a person, and what became of them.

Reading is `queues.outcomes.probes`; what keeps a probe out of every number is `queues.lifecycle`.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from django.db import connection, transaction

from queues import audit, contracts, lifecycle, workers
from queues.accept import EnqueueError, TypeDisabled, accept_probe
from queues.contracts import Contract, UnknownContract
from queues.models import ProbeRun
from queues.redaction import redact_text

log = logging.getLogger(__name__)

BEGIN_MOST: Final = 20
SETTLE_MOST: Final = 500
LATE_MOST: Final = 200
KEEP_DAYS: Final = 7
DETAIL_CHARACTERS: Final = 300
KNOWN_SINCE: Final = 1
"""Workers of this release and later know probes."""
AGAIN_SECONDS: Final = 30
"""After a first failure the next probe comes so soon, whatever the interval: was it one bad minute, or is it down?"""
LATE: Final = "late"
PAUSED: Final = "paused"
DEFERRED: Final = "deferred"
DISABLED: Final = "disabled"
CANCELLED: Final = "cancelled"
MISSING: Final = "missing"

_Outcome = ProbeRun.Outcome

# Types that stopped asking lose their row; a type that asks for the first time is not probed in the second in which all
# others are; and after a shorter interval, or a clock that went back, nobody waits for the longer one.
_KEEP: Final = """
WITH gone AS (
  DELETE FROM queues_probe WHERE type = ANY(ARRAY(
    SELECT p.type FROM queues_probe p WHERE NOT EXISTS (
      SELECT FROM queues_jobtype c WHERE c.name = p.type AND c.probe_every_seconds > 0)
    ORDER BY p.type FOR UPDATE OF p SKIP LOCKED))
), sooner AS (
  UPDATE queues_probe p SET next_at = jobs_now() + make_interval(secs => c.probe_every_seconds)
  FROM queues_jobtype c WHERE c.name = p.type AND p.type = ANY(ARRAY(
    SELECT p.type FROM queues_probe p JOIN queues_jobtype c ON c.name = p.type AND c.probe_every_seconds > 0
    WHERE p.next_at > jobs_now() + make_interval(secs => c.probe_every_seconds * 1.1 + 1)
    ORDER BY p.type FOR UPDATE OF p SKIP LOCKED))
)
INSERT INTO queues_probe (type, next_at, failures)
SELECT c.name, jobs_now() + make_interval(secs => random() * 5), 0 FROM queues_jobtype c
WHERE c.probe_every_seconds > 0 AND NOT EXISTS (SELECT FROM queues_probe p WHERE p.type = c.name) ORDER BY c.name
ON CONFLICT DO NOTHING
"""

# A worker of the release before would count a probe as business.
_OLD_WORKERS: Final = f"""EXISTS (SELECT FROM queues_workerprocess w WHERE w.kind = 'worker'
    AND w.release < {KNOWN_SINCE} AND w.seen_at > jobs_now() - interval '{workers.GONE_SECONDS} seconds')"""

# Which switch keeps a probe from being accepted or run; empty when none does.
_HELD: Final = "CASE WHEN c.paused THEN 'paused' WHEN c.deferred THEN 'deferred' ELSE '' END"
_SKIPS: Final = f"CASE WHEN c.enabled THEN {_HELD} ELSE 'disabled' END"
_SKIPS_OF: Final = f"SELECT {_SKIPS} FROM queues_jobtype c WHERE c.name = %(type)s"  # noqa: S608 (constants)

# The next time counts from now and not from when this one was due: after an outage one run follows, not all of them.
_CLAIM: Final = f"""
UPDATE queues_probe p SET last_at = jobs_clock(),
  next_at = jobs_clock() + make_interval(secs => c.probe_every_seconds * (0.9 + random() * 0.2))
FROM queues_jobtype c WHERE c.name = p.type AND p.type = ANY(ARRAY(
  SELECT d.type FROM queues_probe d WHERE d.next_at <= jobs_now()
    AND NOT EXISTS (SELECT FROM queues_proberun r WHERE r.type = d.type AND r.outcome = 'running')
    AND NOT {_OLD_WORKERS}
  ORDER BY d.next_at LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED))
RETURNING p.type, {_SKIPS}
"""  # noqa: S608 (constants)

_BEGIN: Final = """
INSERT INTO queues_proberun (type, tier, window_seconds, begun_at, settled_at, outcome, reason, detail, by)
VALUES (%(type)s, %(tier)s, %(window)s, jobs_clock(), CASE WHEN %(reason)s <> '' THEN jobs_clock() END,
  CASE WHEN %(reason)s <> '' THEN 'skipped' ELSE 'running' END, %(reason)s, '', %(by)s)
ON CONFLICT (type) WHERE outcome = 'running' DO NOTHING
RETURNING id
"""

_OPEN: Final = """
SELECT id, type, job_id, window_seconds, begun_at FROM queues_proberun WHERE outcome = 'running'
ORDER BY id LIMIT %(limit)s
"""

_MAY_BE_LATE: Final = """
SELECT id, type, job_id, window_seconds, begun_at FROM queues_proberun
WHERE outcome = 'failed' AND late_at IS NULL AND settled_at > jobs_now() - interval '1 hour' AND job_id IS NOT NULL
ORDER BY settled_at DESC LIMIT %(limit)s
"""

# Of late evidence the first that confirms.
_JOBS: Final = f"""
SELECT j.id, j.state, coalesce(j.reason, '') AS reason, j.begun, j.ready_at, j.settled_at, jobs_now() AS now,
  left(j.failures -> -1 ->> 'error_class', 120) AS error_class, left(j.failures -> -1 ->> 'message', 300) AS message,
  {_HELD} AS held, (SELECT min((e ->> 'at')::timestamptz) FROM jsonb_array_elements(j.late_evidence) AS e
    WHERE e ->> 'outcome' = 'confirmed') AS late_at
FROM queues_job j LEFT JOIN queues_jobtype c ON c.name = j.type WHERE j.id = ANY(%(ids)s::uuid[])
"""  # noqa: S608 (constants)

# A run that is begun locks these first as well, so neither waits for the other with something in hand.
_LOCK: Final = "SELECT type FROM queues_probe WHERE type = ANY(%(types)s::text[]) ORDER BY type FOR UPDATE"
_SETTLE: Final = f"""
WITH settled AS (
  UPDATE queues_proberun r SET outcome = i.outcome, settled_at = jobs_clock(), took_seconds = i.took_seconds,
    reason = i.reason, detail = i.detail, late_at = i.late_at
  FROM json_to_recordset(%(ends)s::json) AS i (id bigint, outcome text, took_seconds float8, reason text, detail text,
    late_at timestamptz)
  WHERE r.id = i.id AND r.outcome = 'running'
  RETURNING r.id, r.type, r.outcome, r.settled_at, r.took_seconds
), told AS (
  UPDATE queues_probe p SET
    failures = CASE s.outcome WHEN 'passed' THEN 0 WHEN 'failed' THEN p.failures + 1 ELSE p.failures END,
    failing_since = CASE s.outcome WHEN 'passed' THEN NULL
      WHEN 'failed' THEN coalesce(p.failing_since, s.settled_at) ELSE p.failing_since END,
    last_ok_at = CASE s.outcome WHEN 'passed' THEN s.settled_at ELSE p.last_ok_at END,
    took_seconds = CASE s.outcome WHEN 'passed' THEN s.took_seconds ELSE p.took_seconds END,
    next_at = CASE WHEN s.outcome = 'failed' AND p.failures = 0
      THEN least(p.next_at, s.settled_at + interval '{AGAIN_SECONDS} seconds') ELSE p.next_at END
  FROM settled s WHERE p.type = s.type
)
SELECT id FROM settled
"""  # noqa: S608 (a constant)

_FORGET: Final = """
DELETE FROM queues_proberun WHERE id = ANY(ARRAY(
  SELECT id FROM queues_proberun WHERE begun_at < jobs_now() - make_interval(days => %(days)s) AND outcome <> 'running'
  ORDER BY begun_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING 1
"""


class NotProbed(Exception):
    """A probe of this type cannot be sent now; says why."""


@dataclass(frozen=True, kw_only=True)
class _Open:
    """A run whose job may have ended."""

    id: int
    type: str
    job_id: UUID | None
    window_seconds: int
    begun_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a run wants to know of its job. `held`: paused or deferred. `late_at`: when a proof came after its end."""

    id: UUID
    state: str
    reason: str
    begun: int
    ready_at: dt.datetime
    settled_at: dt.datetime | None
    now: dt.datetime
    error_class: str | None
    message: str | None
    held: str
    late_at: dt.datetime | None


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run went."""

    id: int
    outcome: str
    reason: str = ""
    detail: str = ""
    took_seconds: float | None = None
    late_at: dt.datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A run that a person asked for. `fresh` is False for one that was under way, or that the same form sent."""

    run_id: int
    job_id: UUID | None
    fresh: bool
    detail: str = ""
    """Why no job was accepted."""


def sweep() -> bool:
    """Begin the probes that are due and settle those that ended. Returns whether more may be due."""
    _rows(_KEEP, {})
    begun = begin_due()
    settle_open()
    return begun == BEGIN_MOST


def begin_due(*, limit: int = BEGIN_MOST) -> int:
    """Claim due types and accept the job of each, in one transaction; returns how many types were due."""
    with transaction.atomic():
        due = _rows(_CLAIM, {"limit": limit})
        for name, skip in due:
            _begin(name, skip=skip)
        if due:
            lifecycle.touch_board()
    return len(due)


def _begin(name: str, *, skip: str = "", by: str = "") -> int | None:
    """Begin a run of a type whose row is locked; returns its id, None when another one is under way or it is gone."""
    try:
        contract = contracts.current(name)
    except UnknownContract:
        return None
    run = {"type": name, "tier": contract.tier, "window": contract.window_seconds, "reason": skip, "by": by[:150]}
    rows = _rows(_BEGIN, run)
    if not rows:
        return None
    run_id: int = rows[0][0]
    if not skip:
        _send(run_id, contract)
    return run_id


def _send(run_id: int, contract: Contract) -> None:
    """Accept the job of a run. In a savepoint: what one type does wrong stops no other."""
    try:
        with transaction.atomic():
            job_id = accept_probe(contract.name, key=f"probe-{uuid4().hex}").job_id
    except TypeDisabled:
        _settle([End(id=run_id, outcome=_Outcome.SKIPPED, reason=DISABLED)], {run_id: contract.name})
    except Exception as error:
        reason = error.code if isinstance(error, EnqueueError) else "not_accepted"
        if not isinstance(error, EnqueueError):
            log.warning("the probe of %s was not accepted: %s: %s", contract.name, type(error).__name__, error)
        detail = _plain(f"It was not accepted: {error}")
        end = End(id=run_id, outcome=_Outcome.FAILED, reason=reason[:24], detail=detail)
        _settle([end], {run_id: contract.name})
    else:
        ProbeRun.objects.filter(id=run_id).update(job_id=job_id)


def settle_open(*, limit: int = SETTLE_MOST) -> int:
    """Settle the runs whose job ended or whose window passed; returns how many."""
    runs = [_open(row) for row in _rows(_OPEN, {"limit": limit})]
    found = _jobs(runs)
    ends = [end for run in runs if (end := judge(run, found.get(run.job_id))) is not None]
    if not ends:
        return 0
    with transaction.atomic():
        settled = _settle(ends, {run.id: run.type for run in runs})
        if settled:
            lifecycle.touch_board()
    return settled


def judge(run: _Open, job: _Job | None) -> End | None:
    """Say how a run went, None while that is open."""
    if job is None:
        return End(id=run.id, outcome=_Outcome.FAILED, reason=MISSING, detail="Its job is gone.")
    if job.state == "confirmed" and job.settled_at is not None:
        took = max((job.settled_at - job.ready_at).total_seconds(), 0.0)
        if took <= run.window_seconds:
            return End(id=run.id, outcome=_Outcome.PASSED, took_seconds=took)
        detail = f"Confirmed {took:.1f} s after it was ready, promised within {run.window_seconds} s."
        return End(id=run.id, outcome=_Outcome.FAILED, reason=LATE, detail=detail, late_at=job.settled_at)
    if job.state == "cancelled":
        return End(id=run.id, outcome=_Outcome.SKIPPED, reason=CANCELLED, detail="Somebody cancelled its job.")
    ended = job.settled_at is not None
    if not ended and job.now < job.ready_at + dt.timedelta(seconds=run.window_seconds):
        return None
    if job.held and not job.begun:
        return End(id=run.id, outcome=_Outcome.SKIPPED, reason=job.held)
    return End(
        id=run.id, outcome=_Outcome.FAILED, reason=job.reason if ended else LATE, detail=_plain(_story(run, job))
    )


def _story(run: _Open, job: _Job) -> str:
    """Say where a job stood when it ended, or its window did."""
    said = f"{job.error_class}: {job.message}" if job.error_class else ""
    if not job.begun:
        return f"No worker began it within {run.window_seconds} s."
    if job.settled_at is None:
        where = {"processing": "its run goes on", "awaiting_confirmation": "no proof has come"}
        words = where.get(job.state, "it waits for another attempt")
        return f"Not confirmed within {run.window_seconds} s: {words}. {said}".strip()
    return said or f"Not confirmed within {run.window_seconds} s."


def note_late(*, limit: int = LATE_MOST) -> int:
    """Say of failed runs of the last hour that their proof came after all; returns of how many."""
    runs = [_open(row) for row in _rows(_MAY_BE_LATE, {"limit": limit})]
    jobs, noted = _jobs(runs), 0
    for run in runs:
        job = jobs.get(run.job_id)
        at = None if job is None else job.settled_at if job.state == "confirmed" else job.late_at
        if job is None or at is None:
            continue
        words = f"Confirmed late, {max((at - job.ready_at).total_seconds(), 0.0):.0f} s after it was ready."
        noted += ProbeRun.objects.filter(id=run.id, late_at=None).update(late_at=at, detail=words)
    return noted


def run_now(
    name: str, *, actor: str, reason: str, after: int | None = None, source: str = "ui", request_id: str = ""
) -> Sent:
    """Send a probe of a type now, beside its schedule, audited.

    One that is under way is the answer itself; so is one that `actor` sent since run `after`, the last one that a form
    spoke of: a second click sends no second one.
    Raises: NotProbed.
    """
    with transaction.atomic():
        _rows(_KEEP, {})
        if not _rows(_LOCK, {"types": [name]}):
            raise NotProbed(f"The contract of {name} asks for no probes: probe_every_seconds is 0.")
        if skips := _rows(_SKIPS_OF, {"type": name})[0][0]:
            raise NotProbed(f"{name} is {skips}: a probe would not run.")
        if _rows(f"SELECT {_OLD_WORKERS}", {})[0][0]:  # noqa: S608 (constants)
            raise NotProbed("A worker of the release before is still there; it does not know probes.")
        known = _sent_before(name, actor=actor, after=after)
        if known is not None:
            return Sent(run_id=known.pk, job_id=known.job_id, fresh=False)
        run_id = _begin(name, by=actor)
        if run_id is None:
            raise NotProbed(f"{name} has just changed; try again.")
        run = ProbeRun.objects.get(id=run_id)
        audit.record(
            "probe.sent",
            actor=actor,
            object_type="job_type",
            object_id=name,
            after={"run": run.pk, "job": str(run.job_id) if run.job_id else None},
            reason=reason,
            source=source,
            request_id=request_id,
        )
        lifecycle.touch_board()
    return Sent(run_id=run.pk, job_id=run.job_id, fresh=True, detail=run.detail)


def _sent_before(name: str, *, actor: str, after: int | None) -> ProbeRun | None:
    running = ProbeRun.objects.filter(type=name, outcome=_Outcome.RUNNING).first()
    if running is not None or after is None:
        return running
    return ProbeRun.objects.filter(type=name, id__gt=after, by=actor[:150]).order_by("id").first()


def forget_old(*, limit: int) -> int:
    """Delete runs that are older than they are kept; returns how many."""
    return len(_rows(_FORGET, {"days": KEEP_DAYS, "limit": limit}))


def _settle(ends: Sequence[End], types: Mapping[int, str]) -> int:
    """Write how runs went, in the caller's transaction; those that somebody else settled stay as they are."""
    _rows(_LOCK, {"types": sorted({types[end.id] for end in ends})})
    return len(_rows(_SETTLE, {"ends": json.dumps([vars(end) for end in ends], default=_text)}))


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def _open(row: tuple[Any, ...]) -> _Open:
    names = ("id", "type", "job_id", "window_seconds", "begun_at")
    return _Open(**dict(zip(names, row, strict=True)))


def _jobs(runs: Sequence[_Open]) -> dict[UUID | None, _Job]:
    ids = [str(run.job_id) for run in runs if run.job_id is not None]
    if not ids:
        return {}
    names = (
        "id", "state", "reason", "begun", "ready_at", "settled_at", "now", "error_class", "message", "held",
        "late_at",
    )  # fmt: skip
    found = [_Job(**dict(zip(names, row, strict=True))) for row in _rows(_JOBS, {"ids": "{" + ",".join(ids) + "}"})]
    return {job.id: job for job in found}


def _plain(text: str) -> str:
    return redact_text(text)[:DETAIL_CHARACTERS]


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []
