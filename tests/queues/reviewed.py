"""What the tests of a review of checks, callbacks and steps share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import pytest

from queues import confirmation, lifecycle
from queues.confirmation import Evidence, Outcome
from queues.handlers import Confirmed, JobContext, Rejected
from queues.lifecycle import End, Run, Verdict
from queues.runtime.chunk import Runner
from queues.runtime.context import context_of
from queues.runtime.execute import Ended, execute
from queues.runtime.leases import LeaseTable
from queues.runtime.steps import RunSteps
from queues.states import JobState
from tests.factories import TYPE, claim, lose_lease, set_columns, sql

S = JobState
ASK: Final[dict[str, Any]] = {
    "success": "check",
    "check_every_seconds": 10,
    "confirm_within_seconds": 60,
    "backoff": "fixed",
    "backoff_base_seconds": 20.0,
    "max_attempts": 2,
    "max_age_seconds": 3600,
}
CALL: Final[dict[str, Any]] = {
    "success": "callback", "backoff": "fixed", "backoff_base_seconds": 20.0, "confirm_within_seconds": 60,
}  # fmt: skip


class World:
    """What the handler and the check of a type do, and how often they were asked."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.outcome: Any = Confirmed("r-1")
        self.meanwhile: Callable[[JobContext], object] = lambda job: None
        self.asked: list[JobContext] = []
        self.ran: list[JobContext] = []

    def check(self, job: JobContext) -> Any:
        """Answer as the test says."""
        self.asked.append(job)
        if isinstance(self.answer, BaseException) and not isinstance(self.answer, Rejected):
            raise self.answer
        return self.answer

    def handle(self, job: JobContext) -> Any:
        """Let something happen, and return what the test says."""
        self.ran.append(job)
        self.meanwhile(job)
        return self.outcome


def run_once(job_id: UUID) -> Ended:
    """Claim, run and finish one job, without the threads of a worker."""
    [run] = claim([job_id])
    ended = execute(run, context_of(run, steps=RunSteps(run)), begin=lambda limit: None)
    if not ended.written:
        lifecycle.settle([ended.end])
    return ended


def poll(job_id: UUID) -> None:
    """Let the next check be due, and ask it as a worker does."""
    set_columns(job_id, raw_due_at="jobs_now() - interval '1 ms'")
    assert Runner(LeaseTable(), node="test").check([job_id]) == 1


def begun_before(job_id: UUID) -> None:
    """Lose a run of a job after its body began."""
    claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])


def awaiting(run: Run, ref: str | None = None, **overrides: Any) -> End:
    """Return the end of a run whose handler handed the work over."""
    values: dict[str, Any] = {"confirm_in": 60.0, "act_in": 60.0, **overrides}
    return End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, reference=ref, **values)


def provider(webhook_id: str, outcome: str = "confirmed", *, job_id: UUID | None = None, **values: Any) -> Outcome:
    """A provider's callback."""
    said = Evidence(outcome="confirmed" if outcome == "confirmed" else "rejected", **values)
    return confirmation.by_provider(TYPE, webhook_id=webhook_id, job_id=job_id, evidence=said)


def waits(job_id: UUID) -> float:
    """Return how many seconds after the end of its last run a job acts again."""
    [(seconds,)] = sql("SELECT extract(epoch FROM due_at - finished_at)::float8 FROM queues_job WHERE id = %s", job_id)
    return float(seconds)


class Clock:
    """CLOCK_MONOTONIC, as far as a module knows."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Stand in for the module `time`."""
        return self.now


def refuse(job_id: UUID, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the database refuse whatever is written about a job."""
    real = lifecycle.confirm

    def confirm(proofs: Any) -> Any:
        if proofs[0].id == job_id:
            raise error("refused")
        return real(proofs)

    monkeypatch.setattr(lifecycle, "confirm", confirm)
