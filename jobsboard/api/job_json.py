"""The job as JSON: what every call that answers with a job writes.

Not here: reading jobs (`jobsboard.api.listing`); what is a secret (`queues.redaction`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db.models import DateTimeField, Func

from dlq.preflight import late_evidence
from jobsboard.api.times import write
from queues import contracts
from queues.models import Job, JobQuerySet
from queues.redaction import REDACTED, redact, redact_text
from queues.states import TERMINAL, WAITING, JobState

BASE: Final = "/api/v1"


def job_path(job_id: UUID | str) -> str:
    """Return where a job is found, relative to the host."""
    return f"{BASE}/jobs/{job_id}"


def readable() -> JobQuerySet:
    """Return jobs as `as_json` wants them: with the database's time beside each."""
    return Job.objects.annotate(read_at=Func(function="jobs_now", output_field=DateTimeField()))


def as_json(job: Job, *, tracebacks: bool = True) -> dict[str, Any]:
    """Return a job of `readable` with its payload, result and messages redacted."""
    now: datetime = job.read_at  # type: ignore[attr-defined]
    lag = job.settled_at - job.ready_at if job.state == JobState.CONFIRMED and job.settled_at else None
    return {
        "id": str(job.id),
        "type": job.type,
        "tier": job.tier,
        "contract_version": job.contract_version,
        "state": job.state,
        "reason": job.reason,
        "probe": job.probe,
        "group": job.group,
        "priority": job.priority,
        "dedupe_key": job.dedupe_key,
        "idempotency_key": job.idempotency_key,
        "payload": _payload(job),
        "attempt": job.attempt,
        "max_attempts": job.attempt_limit,
        "run": job.fence,
        "accepted_at": write(job.accepted_at),
        "ready_at": write(job.ready_at),
        "due_at": write(job.due_at),
        "expires_at": write(job.expires_at),
        "confirm_by": write(job.confirm_by),
        "started_at": write(job.started_at),
        "finished_at": write(job.finished_at),
        "settled_at": write(job.settled_at),
        "window_seconds": job.window_seconds,
        "in_window": _in_window(job, lag, now=now),
        "lag_seconds": None if lag is None else lag.total_seconds(),
        "progress": _progress(job),
        "reference": redact(job.reference),
        "evidence": _evidence(job),
        "late_evidence": [_late(one) for one in job.late_evidence or [] if isinstance(one, dict)],
        "result": redact(job.result),
        # About the last run, or the next one where the job waits for it (DESIGN.md section 5).
        "maybe_duplicate": job.begun > (0 if job.state in WAITING else 1),
        "cancel_requested": job.cancel_requested,
        "attempts": _attempts(job, tracebacks=tracebacks),
        "replay_of": _text(job.replay_of),
        "replayed_by": _text(job.replayed_by),
        "root": str(job.root),
        "links": {
            "self": f"{settings.PUBLIC_URL}{job_path(job.id)}",
            "board": f"{settings.PUBLIC_URL}/jobs/{job.id}/",
        },
    }


def _in_window(job: Job, lag: timedelta | None, *, now: datetime) -> bool | None:
    """Return null while the promise can still be kept."""
    window = timedelta(seconds=job.window_seconds)
    if lag is not None:
        return lag <= window
    return False if job.state in TERMINAL or now > job.ready_at + window else None


def _payload(job: Job) -> Any:
    if job.payload is None:
        return None
    try:
        pointers = contracts.of_version(job.type, job.contract_version).redact
    except contracts.UnknownContract:
        # Nobody can say any more what was secret in it.
        return REDACTED
    return redact(json.loads(job.payload), pointers=pointers)


def _evidence(job: Job) -> dict[str, Any] | None:
    """Return what proves the outcome; without it the newest proof that came too late to count."""
    found = job.evidence or next(reversed(late_evidence(job, "confirmed")), None)
    if not found:
        return None
    return {
        "kind": found.get("kind"),
        "ref": redact(found.get("ref")),
        "at": _evidence_time(found.get("at")),
        "late": not job.evidence,
    }


def _late(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "outcome": found.get("outcome"),
        "kind": found.get("kind"),
        "ref": redact(found.get("ref")),
        "detail": redact(found.get("detail")),
        "at": _evidence_time(found.get("at")),
        "run": found.get("run"),
    }


def _progress(job: Job) -> dict[str, Any] | None:
    found = job.progress
    if not isinstance(found, dict):
        return None
    return {
        "share": found.get("share"),
        "text": redact_text(str(found.get("text") or "")),
        "at": _evidence_time(found.get("at")),
    }


def _evidence_time(text: Any) -> str | None:
    """Write a time that PostgreSQL wrote into the JSON, with whatever offset its session had."""
    try:
        return write(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return None


def _attempts(job: Job, *, tracebacks: bool) -> list[dict[str, Any]]:
    attempts = [_failure(failure, tracebacks=tracebacks) for failure in job.failures]
    running = job.state == JobState.PROCESSING
    last_failed = bool(attempts) and attempts[-1]["started_at"] == write(job.started_at)
    if job.started_at is not None and job.attempt and (running or not last_failed):
        attempts.append(
            {
                "number": job.attempt,
                "started_at": write(job.started_at),
                "finished_at": None if running else write(job.finished_at),
                "outcome": "running" if running else _last_outcome(job),
                "worker": job.worker,
                "error_class": None,
                "message": None,
                "traceback": None,
            }
        )
    return attempts


def _last_outcome(job: Job) -> str:
    return "returned" if job.state == JobState.AWAITING_CONFIRMATION else job.state


def _failure(failure: dict[str, Any], *, tracebacks: bool) -> dict[str, Any]:
    error_class = failure.get("error_class")
    return {
        "number": failure.get("attempt"),
        "started_at": _evidence_time(failure.get("started_at")),
        "finished_at": _evidence_time(failure.get("finished_at")),
        "outcome": "lost" if error_class == "WorkerLost" else "failed",
        "worker": failure.get("worker"),
        "error_class": error_class,
        "message": redact_text(str(failure.get("message") or "")),
        "traceback": redact_text(str(failure.get("traceback") or "")) if tracebacks else None,
    }


def _text(job_id: UUID | None) -> str | None:
    return None if job_id is None else str(job_id)
