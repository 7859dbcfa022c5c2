"""What proves a job's outcome, what it still waits for, and what came too late to count: in words, redacted.

Not here: what evidence does to a job (`queues.confirmation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from queues.contracts import Contract
from queues.models import Job
from queues.redaction import redact_text
from queues.states import JobState, Reason


@dataclass(frozen=True, kw_only=True)
class Said:
    """One piece of evidence: what it is called, who said it and what that means."""

    title: str
    words: str
    ref: str = ""
    detail: str = ""
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """What an awaiting job waits for. `then`: what follows when nothing comes until then."""

    what: str
    until: datetime | None
    then: str
    next_check: datetime | None
    unanswered: int
    asked_before: bool


def proof(job: Job) -> Said | None:
    """Return what proves the outcome, or will when the run ends."""
    one = job.evidence
    if not isinstance(one, dict):
        return None
    words = f"confirmed {_by(one)}"
    if job.state == JobState.PROCESSING:
        words += "; it counts when the run ends"
    return _said("Proof", words, one)


def heard(job: Job) -> list[Said]:
    """Return the rejection that counted for a run, then what came and could not count, oldest first."""
    refused = [_rejection(job, job.rejection)] if isinstance(job.rejection, dict) else []
    return [*refused, *(_late(job, one) for one in job.late_evidence or [] if isinstance(one, dict))]


def _rejection(job: Job, one: dict[str, Any]) -> Said:
    by = f"Rejected {_by(one)}"
    if one.get("fence") != job.fence:
        return _said("Run before rejected", f"{by}; another attempt followed", one)
    if job.state == JobState.PROCESSING:
        follows = "another attempt follows" if one.get("retryable") else "the job becomes a dead letter"
        return _said("Rejected, kept", f"{by}; when the run ends without a proof, {follows}", one)
    if job.state == JobState.RETRYING:
        return _said("Rejected", f"{by}; another attempt follows", one)
    if job.state == JobState.CONFIRMED:
        return _said("Rejected before", f"{by}; the proof came all the same, and it counts", one)
    return _said("Rejected", by if job.reason == Reason.REJECTED else f"{by}, before its end", one)


def _late(job: Job, one: dict[str, Any]) -> Said:
    run, who = one.get("run", job.fence), _who(one)
    if one.get("outcome") == "confirmed":
        if job.evidence:
            words = f"{who} named another reference: the work may have been done twice"
            return _said("Confirmed again", words, one)
        return _said("Confirmed late", f"{who} said that the work was done, after this end", one)
    if run == 0:
        return _said("Rejected too early", f"{who} said so before a run began; it changed nothing", one)
    if job.evidence and run == job.fence:
        return _said("Contradicted", f"{who} said that the work was not done; the proof counts", one)
    if job.settled_at and run == job.fence:
        return _said("Rejected late", f"{who} said that the work was not done, after this end", one)
    return _said("An older run was rejected", f"{who} said so of run {run}; a newer one had begun", one)


def awaited(job: Job, contract: Contract | None) -> Awaited | None:
    """Return what an awaiting job waits for. Without its contract only the times are known."""
    if job.state != JobState.AWAITING_CONFIRMATION:
        return None
    called = contract is not None and contract.success == "callback"
    polled = job.polled
    again = contract is not None and contract.on_unconfirmed == "retry" and job.attempt < job.attempt_limit
    until = job.confirm_by or job.expires_at
    ahead = job.due_at if polled and job.due_at is not None and job.due_at < until else None
    return Awaited(
        what="its proof" if contract is None else "a callback" if called else "a check",
        until=until,
        then="another attempt follows" if again else "it becomes a dead letter",
        next_check=ahead,
        unanswered=job.check_failures + job.checks if polled else 0,
        asked_before=contract is not None and bool(job.check_failures or job.checks or _waited_for_more(job, contract)),
    )


def _waited_for_more(job: Job, contract: Contract) -> bool:
    """Tell whether the next check is not the first one."""
    if job.finished_at is None or job.due_at is None:
        return False
    first = contract.confirm_within_seconds if contract.success == "callback" else contract.check_every_seconds
    return job.due_at - job.finished_at > timedelta(seconds=first + 1)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the run says that it is."""

    share: float | None
    text: str
    at: datetime


def progress(job: Job) -> Progress | None:
    """Return how far the run is that goes on; what an older run said is no longer true."""
    found = job.progress
    if job.state != JobState.PROCESSING or not isinstance(found, dict):
        return None
    at, share = moment(found.get("at")), found.get("share")
    if at is None or job.started_at is None or at < job.started_at:
        return None
    known = float(share) if isinstance(share, int | float) else None
    return Progress(share=known, text=redact_text(str(found.get("text") or "")), at=at)


def moment(value: Any) -> datetime | None:
    """Read a time that the database wrote into JSON."""
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _said(title: str, words: str, one: dict[str, Any]) -> Said:
    return Said(
        title=title,
        words=words,
        ref=redact_text(str(one.get("ref") or "")),
        detail=redact_text(str(one.get("detail") or "")),
        at=moment(one.get("at")),
    )


def _by(one: dict[str, Any]) -> str:
    kind, by = one.get("kind"), str(one.get("by") or "")
    if kind == "manual":
        key = by.removeprefix("key:")
        return f"through the API, key {key}" if key != by else f"by hand by {by}" if by else "by hand"
    named = {"callback": "by a callback", "check": "by the check", "reference": "by the handler’s reference"}
    return named.get(str(kind), f"by {kind}" if kind else "by a callback")


def _who(one: dict[str, Any]) -> str:
    if one.get("kind") == "manual":
        by = str(one.get("by") or "").removeprefix("key:")
        return by or "Somebody"
    return {"check": "The check", "reference": "A run that was given up"}.get(str(one.get("kind")), "A callback")
