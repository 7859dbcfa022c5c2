"""What workers, schedulers, providers and people do to one job, in a word each, and the signs that it left."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any, Final
from uuid import UUID

from queues import actions, confirmation, handlers, lifecycle, outcomes
from queues.confirmation import Applied, Evidence
from queues.lifecycle import End, Run, Verdict
from tests.factories import accept, confirmed, make_type, sql

KIND: Final = "signs.job"
DAY: Final = dt.timedelta(days=1)
BLIND, SECOND, CONTRADICTION, AFTER = (
    "blind_attempt", "second_reference", "contradiction", "confirmed_after_rejection",
)  # fmt: skip
COUNTED: Final = {
    BLIND: "blind_attempts", SECOND: "second_references", CONTRADICTION: "contradictions", AFTER: AFTER,
}  # fmt: skip
_numbers: Final = itertools.count(1)


def contract(**overrides: Any) -> None:
    """Make the job type; a retry is due at once."""
    make_type(KIND, **{"success": "reference", "backoff": "fixed", "backoff_base_seconds": 0.1, **overrides})


def one(**overrides: Any) -> UUID:
    return accept(kind=KIND, **overrides)[0]


def begin(job_id: UUID) -> Run:
    """Claim as a worker does that knows the registered checks."""
    [run] = lifecycle.claim([job_id], worker="test/1.1", checked=handlers.checked_types())
    return run


def lose(run: Run) -> None:
    """Lose a run: its process is known to be dead."""
    assert lifecycle.rescue([run.id], dead_runs=[(run.id, run.fence)])


def end(run: Run, ref: str = "ref-1") -> None:
    """Let a run succeed."""
    assert lifecycle.settle([confirmed(run, ref)])


def hand_over(run: Run, ref: str | None) -> None:
    """Let a run await its proof."""
    assert lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, reference=ref, confirm_in=60.0)])


def give_up(job_id: UUID) -> None:
    """Let the proof not come."""
    sql("UPDATE queues_job SET due_at = jobs_now(), confirm_by = jobs_now() WHERE id = %s", job_id)
    assert lifecycle.give_up_waiting([job_id])


def say(job_id: UUID | None, ref: str | None, *, outcome: Any = "confirmed", **more: Any) -> Applied:
    """Say it as a provider, under a webhook id of its own."""
    evidence = Evidence(outcome=outcome, ref=ref, **more)
    webhook_id = f"msg-{next(_numbers)}"
    return confirmation.by_provider(KIND, webhook_id=webhook_id, job_id=job_id, evidence=evidence).applied


def reject(job_id: UUID, *, ref: str | None = None, **more: Any) -> Applied:
    return say(job_id, ref, outcome="rejected", **more)


def replay(job_id: UUID, **more: Any) -> UUID:
    return actions.replay_job(job_id, actor="jane", reason="test", source="ui", **more)


def kinds(*ids: UUID) -> list[str]:
    return [sign.kind for sign in outcomes.signs_of(ids)]


def details(*ids: UUID) -> list[tuple[str, int, dict[str, Any]]]:
    return [(sign.kind, sign.fence, dict(sign.detail)) for sign in outcomes.signs_of(ids)]
