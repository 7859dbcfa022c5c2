"""Evidence from outside: which job it is about, and its way there through the lineage and the inbox.

What it does to a job is decided by the row (`lifecycle.confirm`). A finish and a callback may cross: each writes,
commits, and then looks for the other; the scheduler looks again for both.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal
from uuid import UUID

from django.db import DataError, IntegrityError, connection, transaction

from queues import actions, audit, contracts, lifecycle, retry
from queues.actions import JobNotFound
from queues.contracts import UnknownContract
from queues.faults import fault
from queues.lifecycle import Applied, Proof, Proven
from queues.models import Callback, Job
from queues.redaction import redact_text
from queues.states import JobState

__all__ = [
    "Applied",
    "Evidence",
    "JobNotFound",
    "Outcome",
    "apply_pending",
    "by_provider",
    "by_superseded_run",
    "by_token",
    "confirm_job",
]

log = logging.getLogger(__name__)

LINEAGE_MOST: Final = 1000
"""Replays that a piece of evidence follows; nobody replays one action so often."""
KEEP_LEAST: Final = 86400
"""Seconds that a callback is remembered at least: providers repeat theirs for hours."""
REF_CHARACTERS: Final = 1000
DETAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What somebody says about a job. `run` names one of its runs, None the current one."""

    outcome: Literal["confirmed", "rejected"]
    ref: str | None = None
    detail: str = ""
    retryable: bool = False
    run: int | None = None
    kind: Literal["callback", "manual", "check", "reference"] = "callback"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What it did, and to which job: of a lineage, to the newest. `heard`: it was kept before, word for word."""

    job_id: UUID | None
    applied: Applied
    state: JobState | None
    was: JobState | None = None
    heard: bool = False


def confirm_job(
    job_id: UUID, evidence: Evidence, *, actor: str, reason: str, source: str, request_id: str = ""
) -> Outcome:
    """Take the word of a person or a program with a key, and audit it. Raises: JobNotFound."""
    with transaction.atomic():
        transaction.on_commit(partial(fault, "confirm.committed"))
        outcome = _apply(job_id, evidence, by=actor)
        if outcome.applied not in (Applied.DUPLICATE, Applied.SUPERSEDED) and not outcome.heard:
            audit.record(
                f"job.{'confirmed' if evidence.outcome == 'confirmed' else 'rejected'}_by_hand",
                actor=actor,
                object_type="job",
                object_id=str(outcome.job_id or job_id),
                before={"state": outcome.was},
                after={"applied": outcome.applied.value, "state": outcome.state, "ref": evidence.ref},
                reason=reason[: actions.REASON_CHARACTERS],
                source=source,
                request_id=request_id,
            )
            lifecycle.touch_board()
    return outcome


def by_token(job_id: UUID, evidence: Evidence) -> Outcome:
    """Take the word of an HTTP target; `evidence.run` is its token's. Raises: JobNotFound."""
    return _apply(job_id, evidence)


def by_superseded_run(job_id: UUID, *, run: int, ref: str) -> Outcome:
    """Take the reference that a run got which is no longer the job's: evidence belongs to the lineage, whoever got it.

    What the run wrote itself already, its answer having been lost, is a duplicate. Raises: JobNotFound.
    """
    return _apply(job_id, Evidence(outcome="confirmed", ref=ref, run=run, kind="reference"))


def by_provider(type: str, *, webhook_id: str, job_id: UUID | None, evidence: Evidence) -> Outcome:  # noqa: A002
    """Take a provider's signed word about a job that it names by id, or by the reference that it gave.

    A repeat of the same `webhook_id` is a duplicate, whatever run is the newest by then. Raises: JobNotFound.
    """
    if job_id is not None and not Job.objects.filter(id=job_id, type=type).exists():
        raise JobNotFound(str(job_id))
    # Written and committed first, then looked for: a finish that we do not see yet will see this row.
    callback = _remember(type, webhook_id, job_id, evidence)
    fault("callback.kept")
    outcome = _apply_callbacks([callback]).get(callback) if callback is not None else None
    if outcome is not None:
        return outcome
    known = Callback.objects.filter(type=type, webhook_id=webhook_id).first()
    if callback is None and known is not None and known.applied_at is None:
        again = _apply_callbacks([known.pk]).get(known.pk)
        if again is not None:
            return again
        # It may have waited for the first one, which is applied by now.
        known = Callback.objects.filter(pk=known.pk).first()
    if known is None or known.applied_at is not None:
        return Outcome(job_id=known.job_id if known else job_id, applied=Applied.DUPLICATE, state=None)
    return Outcome(job_id=None, applied=Applied.PENDING, state=None)


def apply_pending(*, job_ids: Sequence[UUID] = (), within_seconds: float = KEEP_LEAST, limit: int = 500) -> int:
    """Apply callbacks whose reference is known by now; returns how many. A job is named by what awaits its proof.

    Without `job_ids`: those of which the callback or the reference was written in the last `within_seconds`.
    """
    found = _matched(job_ids, within_seconds=within_seconds, limit=limit)
    # Who looks for what it wrote itself waits: whoever holds the callback has looked before, and found nothing.
    return len(_apply_callbacks(found, skip_locked=not job_ids))


def match_again(*, within_seconds: float, after: int, limit: int) -> int | None:
    """Look at the next matching callbacks past an id. Returns the last id of a full batch, None at the end."""
    found = _matched((), within_seconds=within_seconds, limit=limit, after=after)
    _apply_callbacks(found, skip_locked=True)
    return found[-1] if len(found) == limit else None


_REMEMBER: Final = """
INSERT INTO queues_callback (type, webhook_id, job_id, ref, outcome, run, retryable, detail, received_at, keep_until,
  applied)
SELECT %(type)s, %(webhook_id)s, %(job_id)s, %(ref)s, %(outcome)s, %(run)s, %(retryable)s, %(detail)s, jobs_clock(),
  jobs_clock() + make_interval(secs => greatest(%(least)s, (SELECT confirm_within_seconds FROM queues_jobtype
    WHERE name = %(type)s))), ''
ON CONFLICT (type, webhook_id) DO NOTHING RETURNING id
"""
_MATCHED: Final = """
SELECT id FROM (
  SELECT c.id FROM queues_callback c
  WHERE c.applied_at IS NULL AND c.received_at > jobs_now() - make_interval(secs => %(within)s)
    AND (c.job_id IS NOT NULL OR EXISTS (SELECT FROM queues_jobreference r WHERE r.type = c.type AND r.ref = c.ref
      AND hashtextextended(r.ref, 0) = hashtextextended(c.ref, 0)))
  UNION
  SELECT c.id FROM queues_jobreference r JOIN queues_callback c ON c.type = r.type AND c.ref = r.ref
    AND hashtextextended(c.ref, 0) = hashtextextended(r.ref, 0)
  WHERE r.at > jobs_now() - make_interval(secs => %(within)s) AND c.applied_at IS NULL AND c.job_id IS NULL
) AS found WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
"""
_MATCHED_JOBS: Final = """
SELECT c.id FROM queues_jobreference r JOIN queues_callback c ON c.type = r.type AND c.ref = r.ref
  AND hashtextextended(c.ref, 0) = hashtextextended(r.ref, 0)
WHERE r.job_id = ANY(%(ids)s) AND c.applied_at IS NULL AND c.job_id IS NULL
ORDER BY c.id LIMIT %(limit)s
"""
_FIND: Final = """
SELECT job_id, fence FROM queues_jobreference WHERE type = %s AND hashtextextended(ref, 0) = hashtextextended(%s, 0)
  AND ref = %s ORDER BY id DESC LIMIT 1
"""


def _remember(name: str, webhook_id: str, job_id: UUID | None, evidence: Evidence) -> int | None:
    """Keep a callback; None when its id is known."""
    params: dict[str, Any] = {
        "type": name,
        "webhook_id": webhook_id,
        "job_id": job_id,
        "ref": (evidence.ref or "")[:REF_CHARACTERS],
        "outcome": evidence.outcome,
        "run": evidence.run,
        "retryable": evidence.retryable,
        "detail": redact_text(evidence.detail)[:DETAIL_CHARACTERS],
        "least": KEEP_LEAST,
    }
    with connection.cursor() as cursor:
        cursor.execute(_REMEMBER, params)
        row = cursor.fetchone()
    return None if row is None else int(row[0])


def _matched(job_ids: Sequence[UUID], *, within_seconds: float, limit: int, after: int = 0) -> list[int]:
    params: dict[str, Any] = {"ids": list(job_ids), "limit": limit, "within": within_seconds, "after": after}
    with connection.cursor() as cursor:
        cursor.execute(_MATCHED_JOBS if job_ids else _MATCHED, params)
        return [row[0] for row in cursor.fetchall()]


def _apply_callbacks(ids: Sequence[int], *, skip_locked: bool = False) -> dict[int, Outcome]:
    """Apply callbacks of the inbox; what matches nothing stays. One that fails keeps no other waiting.

    `skip_locked`: one that somebody else is about to apply is left to them; a sweep comes again.
    """
    done: dict[int, Outcome] = {}
    for number in ids:
        try:
            outcome = _apply_callback(number, skip_locked=skip_locked)
        except (DataError, IntegrityError):
            log.exception("callback %d cannot be applied", number)
            continue
        if outcome is not None:
            done[number] = outcome
    return done


def _apply_callback(number: int, *, skip_locked: bool) -> Outcome | None:
    """Apply one callback, with its mark in one transaction."""
    with transaction.atomic():
        callback = (
            Callback.objects.select_for_update(skip_locked=skip_locked).filter(pk=number, applied_at=None).first()
        )
        target = None if callback is None else _target_of(callback)
        if callback is None or target is None:
            return None
        job_id, run = target
        evidence = Evidence(
            outcome="confirmed" if callback.outcome == "confirmed" else "rejected",
            ref=callback.ref or None,
            detail=callback.detail,
            retryable=callback.retryable,
            run=run,
        )
        try:
            outcome = _apply(job_id, evidence)
        except JobNotFound:
            # Pruned since: nothing is left that it could be about.
            outcome = Outcome(job_id=job_id, applied=Applied.LATE, state=None)
        _mark(number, outcome, job_id)
        return outcome


def _mark(number: int, outcome: Outcome, job_id: UUID) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE queues_callback SET applied_at = jobs_clock(), applied = %s, job_id = %s WHERE id = %s",
            [outcome.applied.value, job_id, number],
        )


def _target_of(callback: Callback) -> tuple[UUID, int | None] | None:
    """Return the job that a callback speaks of, and the run: a reference names the run that got it."""
    found: tuple[UUID, int] | None = None
    if callback.ref:
        with connection.cursor() as cursor:
            cursor.execute(_FIND, [callback.type, callback.ref, callback.ref])
            found = cursor.fetchone()
    if callback.job_id is None:
        return found
    # With both, the reference still says of which run the provider speaks: a late word about run 1 is none about run 2.
    same = found is not None and found[0] == callback.job_id
    return callback.job_id, found[1] if found and same and callback.run is None else callback.run


def _apply(job_id: UUID, evidence: Evidence, *, by: str | None = None) -> Outcome:
    """Apply evidence to a job; positive evidence goes on to the newest of its lineage. Raises: JobNotFound."""
    first: Proven | None = None
    fence = evidence.run
    for _ in range(LINEAGE_MOST):
        root = first.root if first else None
        found = lifecycle.confirm([_proof(job_id, evidence, fence=fence, by=by, root=root)])
        if not found:
            # Not there; or replayed under another key, which is another action.
            break
        proven = found[0]
        first = first or proven
        if evidence.outcome == "rejected" or proven.applied is not Applied.LATE or proven.replayed_by is None:
            return _outcome(proven)
        if evidence.kind == "reference" and not _same_request(job_id, proven.replayed_by):
            # Our own run's word, about a payload that somebody has changed since: kept, and it confirms nothing.
            return _outcome(proven)
        job_id, fence = proven.replayed_by, None
    if first is None:
        raise JobNotFound(str(job_id))
    return _outcome(first)


def _same_request(*ids: UUID) -> bool:
    return len({bytes(found) for found in Job.objects.filter(id__in=ids).values_list("request_hash", flat=True)}) == 1


def _outcome(proven: Proven) -> Outcome:
    return Outcome(job_id=proven.id, applied=proven.applied, state=proven.state, was=proven.was, heard=proven.heard)


def _proof(job_id: UUID, evidence: Evidence, *, fence: int | None, by: str | None, root: UUID | None) -> Proof:
    retry_in = _delay(job_id) if evidence.outcome == "rejected" and evidence.retryable else 0.0
    return Proof(
        id=job_id,
        positive=evidence.outcome == "confirmed",
        kind=evidence.kind,
        ref=evidence.ref[:REF_CHARACTERS] if evidence.ref else None,
        detail=redact_text(evidence.detail)[:DETAIL_CHARACTERS],
        retryable=evidence.retryable,
        fence=fence,
        retry_in=retry_in,
        by=by,
        root=root,
    )


def _delay(job_id: UUID) -> float:
    row = Job.objects.filter(id=job_id).values_list("type", "contract_version", "attempt").first()
    if row is None:
        return 0.0
    try:
        contract = contracts.of_version(row[0], row[1])
    except UnknownContract:
        return 0.0
    return retry.delay(
        max(1, row[2]),
        backoff=contract.backoff,
        base=contract.backoff_base_seconds,
        cap=contract.backoff_cap_seconds,
        jitter=contract.jitter,
        draw=random.random,
    )
