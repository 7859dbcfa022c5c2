"""One job, read for its page: header, timeline, attempts, evidence, lineage and what may be done with it.

Not here: views; who may do what is asked for, not decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobsboard.board.svg import duration
from jobsboard.board.timeline import Run, Timeline
from queues.models import Job
from queues.states import OPEN, REPLAYABLE, JobState, Resolution


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run. `waited` is what came after it, in words."""

    number: int
    started: datetime | None
    ended: datetime | None
    worker: str
    css: str
    icon: str
    outcome: str
    message: str
    waited: str
    last: bool = False

    @property
    def took(self) -> float | None:
        """Seconds from start to end."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None


def attempts(job: Job, *, now: datetime) -> list[Attempt]:
    """Return the failed runs, then the one that runs now or that settled the job."""
    failed = [one for one in job.failures if isinstance(one, dict)]
    rows = [
        Attempt(
            number=_int(one.get("attempt")),
            started=_moment(one.get("started_at")),
            ended=_moment(one.get("finished_at")),
            worker=str(one.get("worker") or ""),
            css="dead",
            icon="deadst",
            outcome=str(one.get("error_class") or "Failed"),
            message=str(one.get("message") or ""),
            waited=_waited(job, failed, index, now=now),
            last=index == len(failed) - 1,
        )
        for index, one in enumerate(failed)
    ]
    current = _current(job)
    return [*rows, current] if current else rows


def _current(job: Job) -> Attempt | None:
    """The run that did not fail: it runs, or it ended the job well, or handed it over."""
    looks = {
        JobState.PROCESSING: ("processing", "processing", "Running"),
        JobState.AWAITING_CONFIRMATION: ("awaiting", "awaiting", "Handed over"),
        JobState.CONFIRMED: ("confirmed", "confirmed", "Confirmed"),
    }
    look = looks.get(JobState(job.state))
    if look is None or job.started_at is None:
        return None
    css, icon, outcome = look
    message = "asked to stop" if job.cancel_requested and job.state == JobState.PROCESSING else ""
    running = job.state == JobState.PROCESSING
    return Attempt(
        number=job.attempt, started=job.started_at, ended=None if running else job.finished_at, worker=job.worker or "",
        css=css, icon=icon, outcome=outcome, message=message, waited="",
    )  # fmt: skip


def _waited(job: Job, failed: Sequence[dict[str, Any]], index: int, *, now: datetime) -> str:
    ended = _moment(failed[index].get("finished_at"))
    if index + 1 < len(failed):
        started = _moment(failed[index + 1].get("started_at"))
    elif job.state == JobState.RETRYING and job.due_at is not None:
        left = (job.due_at - now).total_seconds()
        return f"next in {duration(left)}" if left > 0 else "due now"
    elif job.state in (JobState.DEAD, JobState.EXPIRED, JobState.CANCELLED):
        return "none left" if job.state == JobState.DEAD else job.state
    else:
        started = job.started_at
    return duration(max((started - ended).total_seconds(), 0)) if started and ended else ""


def timeline(job: Job, rows: Sequence[Attempt], *, now: datetime) -> Timeline:
    """Draw the job's life from its acceptance to its end or now."""
    return Timeline(
        accepted=job.accepted_at,
        until=job.settled_at or now,
        state=job.state,
        runs=[Run(number=row.number, started=row.started, ended=row.ended) for row in rows if row.started],
        window_at=window_end(job),
        window_label=f"window {duration(job.window_seconds)}",
    )


def window_end(job: Job) -> datetime:
    """Return when the job's window passes."""
    return job.ready_at + timedelta(seconds=job.window_seconds)


def headline(job: Job) -> str:
    """Say what happened to the job in one sentence."""
    last = job.failures[-1] if job.failures and isinstance(job.failures[-1], dict) else {}
    error = str(last.get("message") or last.get("error_class") or "")[:140].split("\n")[0]
    if job.state == JobState.DEAD:
        return f"{job.type} died: {error or (job.reason or '').replace('_', ' ')}"
    return {
        JobState.ACCEPTED: f"{job.type} waits for a worker",
        JobState.PROCESSING: f"{job.type} is running",
        JobState.AWAITING_CONFIRMATION: f"{job.type} waits for its confirmation",
        JobState.RETRYING: f"{job.type} will be tried again",
        JobState.CONFIRMED: f"{job.type} is confirmed",
        JobState.EXPIRED: f"{job.type} expired: too old to matter",
        JobState.CANCELLED: f"{job.type} was cancelled",
    }[JobState(job.state)]


@dataclass(frozen=True, kw_only=True)
class Late:
    """Evidence that came after the end, or about a run that was no longer the newest."""

    title: str
    kind: str
    ref: str
    detail: str
    at: datetime | None


def late_evidence(job: Job) -> list[Late]:
    """Return what came and could not count, oldest first."""
    return [
        Late(
            title=_late_title(job, str(one.get("outcome"))),
            kind=str(one.get("kind") or ""),
            ref=str(one.get("ref") or ""),
            detail=str(one.get("detail") or ""),
            at=_moment(one.get("at")),
        )
        for one in job.late_evidence or []
        if isinstance(one, dict)
    ]


def _late_title(job: Job, outcome: str) -> str:
    if job.evidence:
        # A second reference for one action, or the opposite of what is known.
        return "Confirmed again" if outcome == "confirmed" else "Contradicted"
    if outcome == "confirmed":
        return "Confirmed late"
    return "Rejected late" if job.settled_at else "An older run was rejected"


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What the state of the job permits; the role is asked for apart."""

    replay: bool
    cancel: bool
    close: bool

    @property
    def any(self) -> bool:
        """There is something to do."""
        return self.replay or self.cancel or self.close


def allowed(job: Job) -> Allowed:
    """Return what may be done with a job in its state."""
    unresolved = job.resolution == Resolution.OPEN
    return Allowed(
        replay=job.state in REPLAYABLE and unresolved and job.replayed_by is None and job.erased_at is None,
        cancel=job.state in OPEN and not (job.state == JobState.PROCESSING and job.cancel_requested),
        close=job.state == JobState.DEAD and unresolved,
    )


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0
