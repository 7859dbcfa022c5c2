"""Steps, progress and atomic handlers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError, connection, transaction

from queues import actions, broker, handlers, lifecycle
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, RunSuperseded, StepInvalid
from queues.models import AuditEntry, StepResult
from queues.runtime import steps
from queues.runtime.context import context_of
from queues.runtime.execute import Ended, execute
from queues.runtime.steps import RunSteps
from queues.states import JobState
from tests.factories import TYPE, accept, claim, get, lose_lease, make_type, sql

S = JobState


@pytest.fixture(autouse=True)
def kind(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A type, and no broker. Real commits: steps are refused inside a transaction."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type(backoff="fixed", backoff_base_seconds=0.01)
    yield
    handlers._handlers.pop(TYPE, None)


def run_once(job_id: UUID) -> Ended:
    """Claim, run and finish one job, without the threads of a worker."""
    [run] = claim([job_id])
    ended = execute(run, context_of(run, steps=RunSteps(run)), begin=lambda limit: None)
    if not ended.written:
        lifecycle.settle([ended.end])
    return ended


class Kill(BaseException):
    """What is left of a process that died: nothing after this line ran."""


def lost_run(job_id: UUID) -> None:
    """Run a body that dies, as far as the database can see."""
    [run] = claim([job_id])
    with pytest.raises(Kill):
        handlers.find(TYPE).function(context_of(run, steps=RunSteps(run)))
    lose_lease(job_id)
    lifecycle.rescue([job_id])


@pytest.mark.parametrize("dies_after", [0, 1, 2])
def test_steps_are_not_redone(dies_after: int) -> None:
    """I-28: a result is stored before the next step begins; the next run gets it back as it was."""
    done: list[str] = []
    dying = [True]

    @handlers.handler(TYPE)
    def three(job: JobContext) -> Confirmed:
        results = []
        for number in range(3):

            def step(number: int = number) -> dict[str, Any]:
                done.append(f"step {number}")
                return {"n": number, "name": "ä", "list": [1.5, None]}

            results.append(job.once(f"step {number}", step))
            if dying[0] and number == dies_after:
                raise Kill
        assert results == [{"n": n, "name": "ä", "list": [1.5, None]} for n in range(3)]
        return Confirmed("all")

    [job_id] = accept()
    lost_run(job_id)
    dying[0] = False
    run_once(job_id)
    assert get(job_id).state == S.CONFIRMED
    assert done == ["step 0", "step 1", "step 2"]


def test_a_replay_goes_on_where_its_parent_stopped() -> None:
    """The steps belong to the lineage."""
    done: list[str] = []

    @handlers.handler(TYPE)
    def pay_then_mail(job: JobContext) -> Confirmed:
        def pay() -> str:
            done.append("pay")
            return "payment-1"

        paid = job.once("pay", pay)
        if job.maybe_duplicate:
            return Confirmed(paid)
        raise handlers.PermanentError("the mail server is gone")

    [job_id] = accept()
    run_once(job_id)
    child = actions.replay_job(job_id, actor="ada", reason="again", source="api")
    run_once(child)
    assert (get(child).state, done) == (S.CONFIRMED, ["pay"])
    assert StepResult.objects.get().root == job_id


def test_a_superseded_run_does_no_further_step() -> None:
    """I-09: what it has done is kept all the same, since it happened."""
    done: list[str] = []

    @handlers.handler(TYPE)
    def slow(job: JobContext) -> Confirmed:
        def first() -> str:
            done.append("first")
            lose_lease(job.id)
            lifecycle.rescue([job.id])
            return "by the old run"

        job.once("first", first)
        done.append("never")
        return Confirmed("x")

    [job_id] = accept()
    [run] = claim([job_id])
    context = context_of(run, steps=RunSteps(run))
    with pytest.raises(RunSuperseded, match="which is kept"):
        slow(context)
    with pytest.raises(RunSuperseded, match="was not begun"):
        context.once("second", lambda: done.append("second"))
    assert done == ["first"]
    assert StepResult.objects.get().result == "by the old run"
    assert context.once is not None


def test_a_step_inside_a_transaction_is_refused() -> None:
    """Its result would be lost with the transaction."""

    @handlers.handler(TYPE)
    def wrong(job: JobContext) -> Confirmed:
        with transaction.atomic():
            job.once("a", lambda: 1)
        return Confirmed("x")

    [job_id] = accept()
    run_once(job_id)
    assert get(job_id).failures[-1]["error_class"] == "StepInvalid"


@pytest.mark.parametrize("bad", [object(), float("nan"), "x" * 70_000, {"a": "\x00"}, {1, 2, object}])
def test_a_result_that_cannot_be_kept_is_an_error(bad: Any) -> None:
    """Never silently another value than the one that the handler goes on with."""
    [run] = claim(accept())
    kept = steps.RunSteps(run)
    if bad != bad:  # NaN has no JSON of its own: it comes back as null, in both runs
        assert kept.once("nan", lambda: bad) is None
        return
    with pytest.raises(StepInvalid, match="was done, but"):
        kept.once("bad", lambda: bad)
    assert not StepResult.objects.exists()


@pytest.mark.parametrize("name", ["", "x" * 101, "a\x00", "a\nb"])
def test_a_step_has_a_name(name: str) -> None:
    """It is what a later run finds it by."""
    [run] = claim(accept())
    with pytest.raises(StepInvalid):
        steps.RunSteps(run).once(name, lambda: 1)


def test_a_database_that_is_away_for_a_moment_loses_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The effect has happened; its result is worth waiting for."""
    [run] = claim(accept())
    failures = [DatabaseError("away"), DatabaseError("away")]
    real = lifecycle.keep_step

    def flaky(*args: Any, **kwargs: Any) -> tuple[bool, Any]:
        if failures:
            raise failures.pop()
        return real(*args, **kwargs)

    monkeypatch.setattr(lifecycle, "keep_step", flaky)
    assert steps.RunSteps(run).once("a", lambda: 7) == 7
    assert StepResult.objects.get().result == 7


def test_progress_is_stored_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """For those who watch; fenced, never an error, never inside a transaction that would hold the row."""
    now = [100.0]
    monkeypatch.setattr("queues.runtime.leases.now", lambda: now[0])
    [run] = claim(accept())
    context = context_of(run, steps=RunSteps(run))
    context.progress(0.25, "a quarter\x00")
    context.progress(0.5)
    assert get(run.id).progress["share"] == 0.25  # type: ignore[index]
    now[0] += 1.1
    with transaction.atomic():
        context.progress(0.6)
    context.progress(0.75, "more")
    assert (get(run.id).progress["share"], get(run.id).progress["text"]) == (0.75, "more")  # type: ignore[index]
    lose_lease(run.id)
    lifecycle.rescue([run.id])
    now[0] += 2
    context.progress(1.0)
    assert get(run.id).progress["share"] == 0.75  # type: ignore[index]
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            context.progress(share)


# Atomic.


def note(text: str) -> None:
    """An effect in the database, as a handler's own write."""
    AuditEntry.objects.create(actor="handler", action=text, object_type="effect", object_id=text)


def effects() -> list[str]:
    """Return the effects that were committed."""
    return list(AuditEntry.objects.filter(object_type="effect").values_list("action", flat=True))


def test_an_atomic_handler_commits_with_its_confirmation() -> None:
    """Written with the end of the run, in one transaction."""

    @handlers.handler(TYPE, atomic=True)
    def pay(job: JobContext) -> Confirmed:
        assert connection.in_atomic_block
        note("paid")
        return Confirmed("row-1")

    [job_id] = accept()
    assert run_once(job_id).written
    assert (get(job_id).state, effects()) == (S.CONFIRMED, ["paid"])


@pytest.mark.parametrize("how", ["raises", "no evidence", "superseded", "commit fails"])
def test_an_atomic_handler_that_does_not_end_well_leaves_nothing(how: str) -> None:
    """Neither the effect nor the confirmation."""
    if how == "no evidence":
        sql("UPDATE queues_jobtype SET success = 'reference', on_unconfirmed = 'retry'")

    @handlers.handler(TYPE, atomic=True)
    def pay(job: JobContext) -> Confirmed | None:
        note("paid")
        if how == "raises":
            raise ValueError("no")
        if how == "superseded":
            sql("UPDATE queues_job SET state = 'retrying', due_at = jobs_clock()")
        if how == "commit fails":
            with connection.cursor() as cursor:
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE; SELECT 1/0")
        return None if how == "no evidence" else Confirmed("x")

    [job_id] = accept()
    ended = run_once(job_id)
    assert effects() == []
    job = get(job_id)
    if how == "superseded":
        assert ended.end.failure is not None and ended.end.failure["error_class"] == "RunSuperseded"
    assert (job.state, job.evidence) == (S.RETRYING, None)
    assert len(job.failures) == 1


def test_a_handed_over_job_of_an_atomic_handler_commits_too() -> None:
    """Awaiting is no failure: the write and the wait begin together, and an early callback is found."""
    sql("UPDATE queues_jobtype SET success = 'callback'")

    @handlers.handler(TYPE, atomic=True)
    def hand_over(job: JobContext) -> AwaitingConfirmation:
        note("sent")
        return AwaitingConfirmation("ref-9")

    [job_id] = accept()
    run_once(job_id)
    assert (get(job_id).state, get(job_id).reference, effects()) == (S.AWAITING_CONFIRMATION, "ref-9", ["sent"])


def test_an_atomic_handler_on_another_database_is_refused_at_start() -> None:
    """Its writes could not commit with the job."""
    with pytest.raises(ValueError, match="only writes to the same database commit with them"):
        handlers.handler(TYPE, atomic=True, using="replica")
