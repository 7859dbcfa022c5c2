"""run_pending does what workers and the scheduler do, in a test's transaction and without."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import TestCase

from jobsboard.testing import confirm, expire_lease, pending, run_pending
from queues import broker, contracts
from queues.accept import enqueue
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, PermanentError, StepInvalid, check, handler
from queues.models import Job, JobType, StepResult
from tests.factories import TYPE, accept, fold_all, get, make_type, set_columns, sql, state_counts, true_counts

HOUR = dt.timedelta(hours=1)


@pytest.fixture(params=["in a transaction", "committing"])
def kind(request: pytest.FixtureRequest) -> Iterator[JobType]:
    """A job type, in a test that is rolled back and in one that commits."""
    request.getfixturevalue("db" if request.param == "in a transaction" else "transactional_db")
    yield make_type(
        success="reference", backoff="fixed", backoff_base_seconds=600.0, backoff_cap_seconds=600.0, max_attempts=3
    )


def change(**fields: Any) -> None:
    JobType.objects.filter(name=TYPE).update(**fields)
    contracts.forget()


def one(**options: Any) -> Job:
    [job] = run_pending(**options)
    return job


class InATestCase(TestCase):
    """The plain way: Django's TestCase, nothing of pytest."""

    def setUp(self) -> None:
        make_type(success="reference")

    def test_a_job_runs(self) -> None:
        """What runs sees the test's rows, and the test sees what it did."""

        @handler(TYPE)
        def greet(job: JobContext) -> Confirmed:
            user = User.objects.create(username=job.payload["name"])
            return Confirmed(ref=f"user-{user.username}", result={"attempt": job.attempt})

        receipt = enqueue(TYPE, {"name": "growth"})
        with self.captureOnCommitCallbacks(execute=True):
            [job] = run_pending()
        assert (job.id, job.state, job.result) == (receipt.job_id, "confirmed", {"attempt": 1})
        assert job.evidence is not None and job.evidence["ref"] == "user-growth"
        assert User.objects.get().username == "growth"
        assert run_pending() == []

    def test_an_atomic_handler_runs(self) -> None:
        """Its writes and its end are one savepoint; when it fails, both are gone."""

        @handler(TYPE, atomic=True)
        def write(job: JobContext) -> Confirmed | None:
            assert connection.in_atomic_block
            User.objects.create(username=job.payload["name"])
            return Confirmed(ref="1") if job.payload["good"] else None

        enqueue(TYPE, {"name": "a", "good": True})
        enqueue(TYPE, {"name": "b", "good": False})
        assert sorted((job.state, job.reason) for job in run_pending()) == [
            ("confirmed", None),
            ("dead", "no_evidence"),
        ]
        assert [user.username for user in User.objects.all()] == ["a"]


def test_the_counts_are_right(kind: JobType) -> None:
    """Every transition is the lifecycle's own."""

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed | None:
        return Confirmed("r") if job.payload["n"] else None

    for n in range(4):
        enqueue(TYPE, {"n": n})
    assert [job.state for job in run_pending()] == ["dead", "confirmed", "confirmed", "confirmed"]
    fold_all()
    assert state_counts() == true_counts() == {"dead": 1}


def test_a_retry_waits_for_its_time(kind: JobType) -> None:
    """Without `ahead` nothing is hurried; with it the clock runs through all that happens in that time."""
    seen = []

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        seen.append((job.attempt, job.maybe_duplicate))
        if job.attempt < 3:
            raise ConnectionError("down")
        return Confirmed("r")

    before = sql("SELECT jobs_now()")[0][0]
    enqueue(TYPE, {})
    job = one()
    assert (job.state, job.failures[0]["error_class"]) == ("retrying", "ConnectionError")
    assert run_pending() == []
    assert run_pending(ahead=dt.timedelta(minutes=9)) == []
    job = one(ahead=HOUR)
    assert (job.state, job.attempt, seen) == ("confirmed", 3, [(1, False), (2, True), (3, True)])
    assert job.settled_at is not None
    assert dt.timedelta(minutes=19) < job.settled_at - before < dt.timedelta(minutes=22)
    assert sql("SELECT jobs_now()")[0][0] - before < dt.timedelta(minutes=5)
    assert sql("SELECT prosrc FROM pg_proc WHERE proname = 'jobs_now'") == [("SELECT statement_timestamp()",)]


def test_a_later_job_runs_later(kind: JobType) -> None:
    """`run_at` is a time like any other."""
    handler(TYPE)(lambda job: Confirmed("r"))
    enqueue(TYPE, {}, run_at=dt.datetime.now(dt.UTC) + HOUR)
    assert run_pending() == []
    assert one(ahead=2 * HOUR).state == "confirmed"


def test_too_old_jobs_expire(kind: JobType) -> None:
    """Max age comes before the retry that is due after it."""
    handler(TYPE)(lambda job: (_ for _ in ()).throw(ConnectionError("down")))
    enqueue(TYPE, {}, max_age=60)
    assert one().state == "retrying"
    assert one(ahead=dt.timedelta(minutes=2)).state == "expired"


def test_checks_are_asked_in_their_turn(kind: JobType) -> None:
    """An hour ahead is not one jump: the check is asked every ten seconds, and answers the third time."""
    change(success="check", check_every_seconds=10, confirm_within_seconds=60)
    asked = []
    handler(TYPE)(lambda job: AwaitingConfirmation("ref-1"))

    @check(TYPE)
    def look(job: JobContext) -> Confirmed | None:
        asked.append(job.reference)
        return Confirmed("ref-2") if len(asked) == 3 else None

    enqueue(TYPE, {})
    assert one().state == "awaiting_confirmation"
    job = one(ahead=HOUR)
    assert (job.state, asked) == ("confirmed", ["ref-1"] * 3)
    assert job.settled_at is not None and job.settled_at - job.accepted_at < dt.timedelta(seconds=45)


def test_a_deadline_passes(kind: JobType) -> None:
    """Nobody called back."""
    change(success="callback", confirm_within_seconds=60)
    handler(TYPE)(lambda job: AwaitingConfirmation())
    enqueue(TYPE, {})
    assert one().state == "awaiting_confirmation"
    job = one(ahead=HOUR)
    assert (job.state, job.reason) == ("dead", "unconfirmed")


def test_a_callback_confirms(kind: JobType) -> None:
    """The whole way of a job with a callback, without its deadline."""
    change(success="callback", confirm_within_seconds=60)
    handler(TYPE)(lambda job: AwaitingConfirmation("ref-1"))
    enqueue(TYPE, {})
    confirm(one(), "ref-1")
    assert run_pending(ahead=HOUR) == []
    assert Job.objects.get().state == "confirmed"


def test_a_lost_run_is_run_again(kind: JobType) -> None:
    """It may be a duplicate, and the check is asked first."""
    known: list[str] = []

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        return Confirmed(f"{job.maybe_duplicate} {job.previous_attempts[0]['error_class']}")

    check(TYPE)(lambda job: Confirmed(known[0]) if known else None)
    enqueue(TYPE, {"n": 1})
    job = expire_lease(enqueue(TYPE, {"n": 2}))
    assert (job.state, job.crashes, job.attempt) == ("retrying", 1, 0)
    Job.objects.get(state="accepted")
    known.append("seen")
    states = {job.id: job for job in run_pending()}
    assert states[job.id].evidence is not None and states[job.id].evidence["ref"] == "seen"  # type: ignore[index]


def test_a_run_that_is_lost_on_the_way_does_not_count(kind: JobType) -> None:
    """The end of a run whose lease is gone is superseded; the next run is the job's."""

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        if job.run == 1:
            expire_lease(job.id)
            assert job.cancelled
        return Confirmed(f"run {job.run}")

    enqueue(TYPE, {})
    job = one()
    assert (job.state, job.fence) == ("confirmed", 2)
    assert job.evidence is not None and job.evidence["ref"] == "run 2"
    assert sql("SELECT sum(n)::integer FROM queues_outcomedelta WHERE measure = 'superseded'") == [(1,)]


def test_a_refused_statement_breaks_nothing(kind: JobType) -> None:
    """As in a worker: what went before stands, what comes after works, and the job's end is written."""
    User.objects.create(username="there")

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        User.objects.create(username="before")
        try:
            User.objects.create(username="there")
        except IntegrityError:
            with transaction.atomic():
                User.objects.create(username="after")
        raise PermanentError("no")

    enqueue(TYPE, {})
    assert one().state == "dead"
    assert sorted(user.username for user in User.objects.all()) == ["after", "before", "there"]


def test_a_body_is_outside_any_transaction(kind: JobType) -> None:
    """Steps are kept, durable blocks are allowed, on_commit runs at the commit, and a new connection sees the same."""
    said: list[str] = []

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        assert not connection.in_atomic_block
        with transaction.atomic(durable=True):
            transaction.on_commit(lambda: said.append("committed"))
            User.objects.create(username="durable")
            assert said == []
            with pytest.raises(StepInvalid):
                job.once("inside", lambda: None)
        transaction.on_commit(lambda: said.append("at once"))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: said.append("never"))
            User.objects.create(username="rolled back")
            raise ZeroDivisionError
        assert job.once("step", lambda: said.append("step")) is None
        job.progress(0.5, "half")
        connection.close()
        transaction.set_autocommit(False)
        User.objects.create(username="left open")
        return Confirmed(",".join(user.username for user in User.objects.order_by("username")))

    enqueue(TYPE, {})
    before = connection.in_atomic_block
    job = one()
    assert said == ["committed", "at once", "step"]
    assert job.evidence is not None and job.evidence["ref"] == "durable,left open"
    assert [user.username for user in User.objects.all()] == ["durable"]
    assert StepResult.objects.get().name == "step"
    assert job.progress is not None and job.progress["text"] == "half"
    assert connection.in_atomic_block is before


def test_queries_are_counted_as_ever(kind: JobType, django_assert_max_num_queries: Any, settings: Any) -> None:
    """Capturing queries writes them out, which needs the driver's connection."""
    handler(TYPE)(lambda job: Confirmed(f"{User.objects.filter(username='x').count()} users"))
    enqueue(TYPE, {})
    with django_assert_max_num_queries(60) as captured:
        assert one().state == "confirmed"
    assert any("auth_user" in query["sql"] for query in captured.captured_queries)


def test_one_type_at_a_time(kind: JobType) -> None:
    """The others stay where they are, their clocks as well."""
    make_type("test.other", success="return")
    for name in (TYPE, "test.other"):
        handler(name)(lambda job: Confirmed("r"))
        enqueue(name, {})
        enqueue(name, {}, run_at=dt.datetime.now(dt.UTC) + HOUR)
    assert [job.type for job in run_pending(type=TYPE, ahead=2 * HOUR)] == [TYPE] * 2
    assert [job.type for job in run_pending()] == ["test.other"]


def test_what_a_job_enqueues_runs_as_well(kind: JobType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hint to anybody."""

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        if job.payload["n"]:
            enqueue(TYPE, {"n": job.payload["n"] - 1})
        return Confirmed("r")

    monkeypatch.setattr(broker._channel, "call", lambda *_: pytest.fail("the broker was called"))
    enqueue(TYPE, {"n": 3})
    assert [job.state for job in run_pending()] == ["confirmed"] * 4


def test_a_job_that_is_due_for_ever_is_said(kind: JobType) -> None:
    """It would be a test that never ends."""

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        enqueue(TYPE, {})
        return Confirmed("r")

    enqueue(TYPE, {})
    with pytest.raises(AssertionError, match="for ever"):
        run_pending(limit=10)


def test_a_paused_type_waits(kind: JobType) -> None:
    """A claim does not take it, and nobody asks again and again."""
    handler(TYPE)(lambda job: Confirmed("r"))
    change(paused=True)
    enqueue(TYPE, {})
    assert run_pending(ahead=HOUR) == []


def test_a_failure_is_in_the_log(kind: JobType, caplog: pytest.LogCaptureFixture) -> None:
    """A test that fails shows why its job did."""

    @handler(TYPE)
    def work(job: JobContext) -> Confirmed:
        return Confirmed(str(1 / 0))

    enqueue(TYPE, {})
    with caplog.at_level(logging.INFO, logger=pending.__name__):
        run_pending()
    assert "ZeroDivisionError" in caplog.text


def test_what_falls_due_while_the_work_is_done_is_not_passed_by(kind: JobType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by itself: a job whose max age ends a moment after the due time of another one is expired."""
    change(paused=True)
    first, second = accept(2)
    soon = "jobs_now() + interval '10 minutes'"
    set_columns(first, raw_due_at=soon)
    set_columns(second, raw_expires_at=f"{soon} + interval '40 milliseconds'")
    ask = pending._Pending._ask_checks

    def ask_slowly(self: Any) -> bool:
        threading.Event().wait(0.1)
        return ask(self)

    monkeypatch.setattr(pending._Pending, "_ask_checks", ask_slowly)
    run_pending(ahead=HOUR)
    assert get(second).state == "expired"
