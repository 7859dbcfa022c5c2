"""What a review proved of evidence that arrives beside something else. A letter with a number names the finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from django.db import transaction

from queues import actions, broker, confirmation, handlers, lifecycle
from queues.confirmation import Applied, Evidence, Outcome
from queues.handlers import AwaitingConfirmation, JobContext
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, JobType
from queues.runtime.context import context_of
from queues.runtime.execute import execute
from queues.runtime.steps import RunSteps
from queues.states import JobState
from tests.concurrency.rivals import Rival
from tests.factories import TYPE, accept, claim, evidence, failed, get, make_type, set_columns, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db", "kind")]
S = JobState


@pytest.fixture
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobType]:
    """A job type that is confirmed by a callback; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    yield make_type(success="callback", backoff="fixed", backoff_base_seconds=20.0, confirm_within_seconds=60)
    handlers._handlers.pop(TYPE, None)


# A5: an atomic handler, and the row that leads elsewhere.


def note(job: JobContext) -> None:
    """An effect in the database, as a handler's own write."""
    AuditEntry.objects.create(actor="handler", action=f"run {job.run}", object_type="effect", object_id=str(job.id))


def effects() -> list[str]:
    """Return the effects that were committed."""
    return list(AuditEntry.objects.filter(object_type="effect").order_by("id").values_list("action", flat=True))


def run_once(job_id: UUID) -> None:
    """Claim, run and finish one job, without the threads of a worker."""
    [run] = claim([job_id])
    ended = execute(run, context_of(run, steps=RunSteps(run)), begin=lambda limit: None)
    if not ended.written:
        lifecycle.settle([ended.end])


def _reject(job: JobContext, *, retryable: bool) -> None:
    confirmation.by_token(job.id, Evidence(outcome="rejected", retryable=retryable, run=job.run))


MEANWHILE: dict[str, tuple[Callable[[JobContext], object], JobState, str | None]] = {
    "rejected": (lambda job: _reject(job, retryable=False), S.DEAD, "rejected"),
    "rejected, and retryable": (lambda job: _reject(job, retryable=True), S.RETRYING, None),
    "cancelled": (lambda job: actions.cancel_job(job.id, actor="ada", reason="no", source="api"), S.CANCELLED,
                  "producer"),
}  # fmt: skip


@pytest.mark.parametrize("how", MEANWHILE)
def test_an_atomic_handler_leaves_nothing_where_its_run_did_not_count(how: str) -> None:
    """A5, I-26: it returned, and the row says otherwise by then; the next run's effect is the only one."""
    happen, state, reason = MEANWHILE[how]
    first = [True]

    @handlers.handler(TYPE, atomic=True)
    def pay(job: JobContext) -> AwaitingConfirmation:
        note(job)
        if first:
            first.clear()
            Rival(lambda: happen(job)).outcome()
        return AwaitingConfirmation("r")

    [job_id] = accept()
    run_once(job_id)
    job = get(job_id)
    assert (job.state, job.reason, effects()) == (state, reason, [])
    if state == S.RETRYING:
        set_columns(job_id, raw_due_at="jobs_now()")
        run_once(job_id)
        assert (get(job_id).state, effects()) == (S.AWAITING_CONFIRMATION, ["run 2"])


def test_an_atomic_handler_keeps_its_writes_where_evidence_came_first() -> None:
    """A5: confirmed by a callback while it ran; its effect is the one that was proved."""

    @handlers.handler(TYPE, atomic=True)
    def pay(job: JobContext) -> AwaitingConfirmation:
        note(job)
        Rival(lambda: confirmation.by_token(job.id, Evidence(outcome="confirmed", ref="cb", run=job.run))).outcome()
        return AwaitingConfirmation("r")

    [job_id] = accept()
    run_once(job_id)
    assert (get(job_id).state, evidence(job_id)["ref"], effects()) == (S.CONFIRMED, "cb", ["run 1"])


# A6: evidence beside a replay.


@pytest.mark.parametrize("first", ["replay", "evidence"])
def test_evidence_and_a_replay_at_the_same_moment(first: str) -> None:
    """A6, scenario 2b: whoever comes first, what was proved is not done again."""
    [job_id] = accept(dedupe_key="k")
    [run] = claim([job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])

    def proof() -> Outcome:
        return confirmation.by_token(job_id, Evidence(outcome="confirmed", ref="R", run=1))

    def replay() -> UUID | None:
        return lifecycle.replay(job_id, by="ada")

    if first == "replay":
        with transaction.atomic():
            child = replay()
            assert child is not None
            rival = Rival(proof)
            assert rival.waits()
        outcome = rival.outcome()
        assert (outcome.job_id, outcome.applied) == (child, Applied.CONFIRMED)
        assert (get(child).state, evidence(child)["ref"]) == (S.CONFIRMED, "R")
    else:
        with transaction.atomic():
            outcome = proof()
            beside = Rival(replay)
            assert beside.waits()
        assert (outcome.job_id, outcome.applied) == (job_id, Applied.LATE)
        assert beside.outcome() is not None, "the late evidence warns whoever replays; it forbids nothing"
    assert get(job_id).late_evidence is not None


# C: a callback twice at once.


def awaiting(job_id: UUID) -> End:
    """Return the end of a first run that got its reference."""
    return End(id=job_id, fence=1, verdict=Verdict.AWAITING, reference="R", confirm_in=60.0, act_in=60.0)


def test_a_repeat_beside_the_first_one_is_a_duplicate() -> None:
    """C, K-03: the provider lost patience and sends again while we wait for the row of the job."""
    [run] = claim(accept())
    lifecycle.settle([awaiting(run.id)])

    def say() -> Outcome:
        word = Evidence(outcome="confirmed", ref="R")
        return confirmation.by_provider(TYPE, webhook_id="w", job_id=None, evidence=word)

    with transaction.atomic():
        sql("SELECT id FROM queues_job WHERE id = %s FOR UPDATE", run.id)
        first = Rival(say)
        assert first.waits()
        second = Rival(say)
        assert second.waits()
    assert first.outcome().applied is Applied.CONFIRMED
    assert second.outcome() == Outcome(job_id=run.id, applied=Applied.DUPLICATE, state=None)
    assert say().applied is Applied.DUPLICATE


def test_a_repeat_that_waits_for_the_mark_of_the_first_one_is_a_duplicate() -> None:
    """C, K-03: the first one is applied and not committed."""
    [run] = claim(accept())
    word = Evidence(outcome="confirmed", ref="R")
    assert confirmation.by_provider(TYPE, webhook_id="w", job_id=None, evidence=word).applied is Applied.PENDING
    lifecycle.settle([awaiting(run.id)])
    with transaction.atomic():
        assert confirmation.apply_pending(job_ids=[run.id]) == 1
        rival = Rival(lambda: confirmation.by_provider(TYPE, webhook_id="w", job_id=None, evidence=word))
        assert rival.waits()
    assert rival.outcome() == Outcome(job_id=run.id, applied=Applied.DUPLICATE, state=None)
    assert get(run.id).state == S.CONFIRMED


def test_a_first_word_that_a_finish_applied_is_not_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    """C, scenario 3: the finish found it between our write and our look; it is not told to wait."""
    [run] = claim(accept())
    word = Evidence(outcome="confirmed", ref="R")
    real = confirmation._apply_callbacks

    def crossed(ids: list[int]) -> dict[int, Outcome]:
        monkeypatch.setattr(confirmation, "_apply_callbacks", real)
        lifecycle.settle([awaiting(run.id)])
        assert Rival(lambda: confirmation.apply_pending(job_ids=[run.id])).outcome() == 1
        return real(ids)

    monkeypatch.setattr(confirmation, "_apply_callbacks", crossed)
    outcome = confirmation.by_provider(TYPE, webhook_id="w", job_id=None, evidence=word)
    assert outcome.applied is Applied.DUPLICATE
    assert get(run.id).state == S.CONFIRMED
