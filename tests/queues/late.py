"""Jobs that are late or wait, the machines around them, and what is said of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from queues import lifecycle, outcomes, workers
from queues.lifecycle import End, Verdict
from queues.models import Job
from queues.outcomes import Span, causes
from queues.outcomes.causes import Cause, Why, explain_job, explain_type
from tests.factories import claim, fold_all, set_columns

CAUSE, UNKNOWN, NOT = causes.Verdict.CAUSE, causes.Verdict.UNKNOWN, causes.Verdict.NOT_A_CAUSE
NAME = "mail.send"


def machines(*queues: str, slots: int = 4, busy: int = 1) -> None:
    """Let a scheduler and a worker of these queues report."""
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    if queues:
        workers.report("w/1", kind="worker", hostname="w", pid=2, queues=queues, slots=slots, busy=busy)


def overdue(*ids: UUID, seconds: int = 600) -> None:
    """Let jobs be ready for longer than their window."""
    for job_id in ids:
        set_columns(job_id, raw_ready_at=f"jobs_now() - interval '{seconds} s'")


def settle(ids: list[UUID], verdict: Verdict, **values: Any) -> None:
    """Run jobs to an end."""
    if verdict == Verdict.FAILED:
        failure = {"error_class": "MailDeferred", "message": "SMTP 451 greylisted", "traceback": ""}
        values = {"failure": failure, "retry_in": 300.0, **values}
    lifecycle.settle([End(id=run.id, fence=run.fence, verdict=verdict, **values) for run in claim(ids)])


def of_job(job_id: UUID, *, broker: bool = True, **contract: Any) -> Why:
    fold_all()
    return explain_job(Job.objects.get(id=job_id), board=outcomes.board(), broker=broker, **contract)


def of_type(name: str = NAME, *, span: str = "15m", broker: bool = True, **given: Any) -> Why:
    fold_all()
    board = outcomes.board()
    found = explain_type(
        name, board=board, span=Span.of(span, now=board.now, folded_at=board.folded_at), broker=broker, **given
    )
    assert found is not None
    return found


def codes(why: Why, verdict: causes.Verdict = CAUSE) -> list[str]:
    return [one.code for one in why.causes if one.verdict == verdict]


def one(why: Why, code: str) -> Cause:
    (found,) = [cause for cause in why.causes if cause.code == code]
    return found


def falling(span: Span, *, runs: int = 10, failed: int = 0) -> list[outcomes.Counts]:
    """Return a series that keeps its promise until five slots before its end."""
    n = len(span.slots)
    bad = outcomes.Counts(due=10, kept=2, runs=runs, failed=failed)
    return [outcomes.Counts(due=10, kept=10, runs=runs)] * (n - 5) + [bad] * 5
