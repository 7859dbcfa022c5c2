"""One job, read for its page: header, timeline, attempts, lineage and what may be done with it.

Not here: evidence (`job_evidence`), views; who may do what is asked for, not decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jobsboard.board.job_evidence import moment
from jobsboard.board.timeline import Run, Timeline
from jobsboard.durations import duration
from queues.models import Job
from queues.redaction import redact_text
from queues.states import OPEN, REPLAYABLE, TERMINAL, JobState, Reason, Resolution


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run, or what was heard of it after its end (`after`). `waited` is what came next, in words.

    `awaited`: until when a run that handed its work over waited for the proof.
    """

    number: int
    started: datetime | None
    ended: datetime | None
    worker: str
    css: str
    icon: str
    outcome: str
    message: str
    waited: str
    awaited: datetime | None = None
    after: bool = False

    @property
    def took(self) -> float | None:
        """Seconds from start to end."""
        return (self.ended - self.started).total_seconds() if self.started and self.ended else None


def attempts(job: Job, *, now: datetime) -> list[Attempt]:
    """Return the failed runs, then the one that runs now or that settled the job.

    A run that handed its work over may be told of more than once: failed checks, a rejection, a proof that never came.
    """
    failed = [one for one in job.failures if isinstance(one, dict)]
    rows: list[Attempt] = []
    seen: datetime | None = None
    for index, one in enumerate(failed):
        started, ended = moment(one.get("started_at")), moment(one.get("finished_at"))
        after = started is not None and started == seen
        if not after and started is not None and started == job.started_at and _before(job.finished_at, ended):
            rows.append(_handed_over(job, number=_int(one.get("attempt")), now=now))
            after = True
        seen = started
        rows.append(
            Attempt(
                number=_int(one.get("attempt")),
                started=ended if after else started,
                ended=ended,
                worker="" if after else str(one.get("worker") or ""),
                css="dead",
                icon="deadst",
                outcome=str(one.get("error_class") or "Failed"),
                message=str(one.get("message") or ""),
                waited=_waited(job, failed, index, now=now),
                after=after,
            )
        )
    if seen is None or seen != job.started_at:
        rows += _current(job, now=now)
    return rows


def _before(first: datetime | None, second: datetime | None) -> bool:
    return first is not None and second is not None and first < second


def _current(job: Job, *, now: datetime) -> list[Attempt]:
    """The run that did not fail: it runs, or it ended the job well, or handed it over."""
    if job.started_at is None:
        return []
    if job.state == JobState.PROCESSING:
        message = "asked to stop" if job.cancel_requested else ""
        return [_run(job, "processing", "Running", message=message)]
    if job.state == JobState.AWAITING_CONFIRMATION or job.reason == Reason.UNCONFIRMED:
        return [_handed_over(job, number=job.attempt, now=now)]
    if job.state == JobState.CONFIRMED:
        return [_handed_over(job, number=job.attempt, now=now, css="confirmed", outcome="Confirmed")]
    return []


def _handed_over(
    job: Job, *, number: int, now: datetime, css: str = "awaiting", outcome: str = "Handed over"
) -> Attempt:
    """The newest run, which ended well; from then on its proof was awaited, until it came or was given up."""
    until = job.settled_at or now
    if job.state not in (*TERMINAL, JobState.AWAITING_CONFIRMATION):
        last = job.failures[-1] if job.failures and isinstance(job.failures[-1], dict) else {}
        until = moment(last.get("finished_at")) or until
    ended = job.finished_at
    awaited = until if ended is not None and ended < until else None
    waited = duration((until - ended).total_seconds()) if awaited and ended else ""
    if waited and job.state == JobState.AWAITING_CONFIRMATION:
        waited += " so far"
    message = f"reference {redact_text(job.reference)}" if job.reference and css == "awaiting" else ""
    return _run(job, css, outcome, message=message, number=number, ended=ended, awaited=awaited, waited=waited)


def _run(
    job: Job, css: str, outcome: str, *, message: str = "", number: int | None = None, ended: datetime | None = None,
    awaited: datetime | None = None, waited: str = "",
) -> Attempt:  # fmt: skip
    return Attempt(
        number=job.attempt if number is None else number, started=job.started_at, ended=ended, worker=job.worker or "",
        css=css, icon=css, outcome=outcome, message=message, waited=waited, awaited=awaited,
    )  # fmt: skip


def _waited(job: Job, failed: Sequence[dict[str, Any]], index: int, *, now: datetime) -> str:
    ended, following = moment(failed[index].get("finished_at")), job.started_at
    if index + 1 < len(failed):
        following = moment(failed[index + 1].get("started_at"))
    elif job.state == JobState.RETRYING and job.due_at is not None:
        left = (job.due_at - now).total_seconds()
        return f"next in {duration(left)}" if left > 0 else "due now"
    elif not _before(ended, following):
        if job.state in (JobState.DEAD, JobState.EXPIRED, JobState.CANCELLED):
            return "none left" if job.state == JobState.DEAD else job.state
        following = job.settled_at
    return duration((following - ended).total_seconds()) if ended and following and following > ended else ""


def timeline(job: Job, rows: Sequence[Attempt], *, now: datetime) -> Timeline:
    """Draw the job's life from its acceptance to its end or now."""
    return Timeline(
        accepted=job.accepted_at,
        until=job.settled_at or now,
        state=job.state,
        runs=[
            Run(number=row.number, started=row.started, ended=row.ended, awaited=row.awaited)
            for row in rows
            if row.started and not row.after
        ],
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
    if job.state == JobState.CANCELLED and job.reason == Reason.SUPERSEDED:
        return f"{job.type} gave its place to a newer job"
    return {
        JobState.ACCEPTED: f"{job.type} waits to be started",
        JobState.PROCESSING: f"{job.type} is running",
        JobState.AWAITING_CONFIRMATION: f"{job.type} waits for its confirmation",
        JobState.RETRYING: f"{job.type} will be tried again",
        JobState.CONFIRMED: f"{job.type} is confirmed",
        JobState.EXPIRED: f"{job.type} expired: too old to matter",
        JobState.CANCELLED: f"{job.type} was cancelled",
    }[JobState(job.state)]


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What the state of the job permits; the role is asked for apart."""

    replay: bool
    cancel: bool
    close: bool
    retry: bool
    confirm: bool


def allowed(job: Job) -> Allowed:
    """Return what may be done with a job in its state."""
    unresolved = job.resolution == Resolution.OPEN
    return Allowed(
        replay=job.state in REPLAYABLE and unresolved and job.replayed_by is None and job.erased_at is None,
        cancel=job.state in OPEN and not (job.state == JobState.PROCESSING and job.cancel_requested),
        close=job.state == JobState.DEAD and unresolved,
        retry=job.state == JobState.RETRYING,
        confirm=job.state in OPEN,
    )


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0
