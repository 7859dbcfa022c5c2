"""Why is it late, why is it not running: prepared situations, each explained rightly for the job and for its type."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import lifecycle, outcomes, workers
from queues.contract_switches import set_switch
from queues.lifecycle import Verdict
from queues.models import WorkerProcess
from queues.outcomes import Span
from queues.outcomes.causes import explain_job, explain_type, facts, words
from queues.states import JobState, Reason
from tests.factories import (
    accept,
    assignments,
    claim,
    confirmed,
    fold_all,
    lose_lease,
    make_job,
    make_type,
    set_columns,
    sql,
)
from tests.queues.late import CAUSE, NAME, NOT, UNKNOWN, codes, machines, of_job, of_type, one, overdue, settle


@pytest.mark.django_db
def test_a_pause_is_named_behind_many_that_await_their_proof() -> None:
    """The oldest open jobs are looked at; those that the pause holds may all be younger."""
    make_type(NAME, success="callback", confirm_within_seconds=86_400)
    machines("tier2")
    accept(facts.LOOK_AT_MOST, kind=NAME)
    sql("UPDATE queues_job SET ready_at = jobs_now() - interval '20 min'")
    for state in (JobState.PROCESSING, JobState.AWAITING_CONFIRMATION):
        sql(f"UPDATE queues_job SET {assignments(state)}")
    sql("UPDATE queues_statecount SET state = 'awaiting_confirmation'")
    sql("UPDATE queues_outcomedelta SET measure = 'open.awaiting_confirmation' WHERE measure = 'open.accepted'")
    overdue(*accept(50, kind=NAME))
    set_switch(NAME, actor="jane", reason="the provider asked for it", paused=True)
    assert next(cause.verdict for cause in of_type().causes if cause.code == "paused") == CAUSE


@pytest.mark.django_db
def test_paused() -> None:
    make_type(NAME)
    machines("tier2")
    ids = accept(3, kind=NAME)
    overdue(*ids)
    set_switch(NAME, actor="jane", reason="the provider asked for it", paused=True)
    job = of_job(ids[0])
    assert codes(job) == ["paused"]
    assert job.causes[0].sentence == "mail.send is paused: nothing of it is started"
    assert "By jane since" in job.causes[0].detail
    assert "the provider asked for it" in job.causes[0].detail
    assert job.causes[0].evidence["by"] == "jane"
    assert job.causes[0].since is not None
    late = of_type()
    assert late.state == "overdue"
    assert codes(late) == ["paused"]
    assert late.causes[0].evidence["jobs"] == 3
    assert late.causes[0].share == 1.0
    assert "backlog" not in [cause.code for cause in late.causes]


@pytest.mark.django_db
def test_no_worker() -> None:
    make_type(NAME, pool="mail")
    machines("tier2", "tier1")
    ids = accept(2, kind=NAME)
    overdue(*ids)
    for why in (of_job(ids[0]), of_type()):
        assert codes(why) == ["no_worker"]
        assert why.causes[0].sentence == "No live worker consumes tier2.mail"
        assert why.causes[0].evidence["other_queues"] == ["tier1", "tier2"]
    machines("tier2.mail")
    assert one(of_type(), "no_worker").verdict == NOT
    # A worker that stopped reporting is none.
    WorkerProcess.objects.filter(id="w/1").update(seen_at=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=2))
    assert codes(of_type()) == ["no_worker"]


@pytest.mark.django_db
def test_provider_failing_is_seen_by_all_that_depend_on_it() -> None:
    """Jobs pile up in retrying: the provider is first, waiting to retry second."""
    make_type(NAME, dependency="smtp", max_attempts=5)
    make_type("mail.other", dependency="smtp")
    make_type("report.build")
    machines("tier2")
    ids = accept(3, kind=NAME)
    settle(ids, Verdict.FAILED)
    overdue(*ids)
    settle(accept(5, kind="mail.other"), Verdict.FAILED)
    lifecycle.settle([confirmed(run) for run in claim(accept(20, kind="report.build"))])
    job = of_job(ids[0])
    assert codes(job)[:2] == ["provider_failing", "retrying"]
    assert one(job, "retrying").sentence.startswith("1 of 5 attempts failed, next at ")
    assert one(job, "retrying").detail == "Last error MailDeferred: SMTP 451 greylisted."
    late = of_type()
    assert codes(late)[:2] == ["provider_failing", "retrying"]
    first = late.causes[0]
    assert first.sentence == "smtp fails: 100% of 8 runs in the last 10 min"
    assert first.evidence["types"] == ["mail.other", "mail.send"]
    assert (first.evidence["runs"], first.evidence["failed"]) == (8, 8)
    assert (first.evidence["newest_error"], first.evidence["errors"]) == ("MailDeferred", {"MailDeferred": 3})
    assert one(late, "retrying").evidence["retrying"] == 3


@pytest.mark.django_db
def test_backlog() -> None:
    make_type(NAME)
    machines("tier2", slots=2, busy=2)
    lifecycle.settle([confirmed(run) for run in claim(accept(20, kind=NAME))])
    make_type("mail.other")
    make_type("mail.elsewhere", pool="slow")
    accept(4, kind="mail.other")
    accept(7, kind="mail.elsewhere")
    ids = accept(6, kind=NAME)
    accept(2, kind=NAME, priority=5)
    accept(3, kind=NAME, priority=-5)
    accept(1, kind=NAME, priority=50, run_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    job = of_job(ids[4])
    assert codes(job) == ["backlog"]
    assert job.causes[0].sentence == "6 jobs of this type are ahead of it"
    assert job.causes[0].evidence["runs_per_minute"] == 2.0
    assert (
        "2 a minute were started in the last 10 min: about 3 min at that pace. All 2 slots of tier2 are busy."
        in job.causes[0].detail
    )
    overdue(*ids)
    late = of_type()
    assert codes(late) == ["backlog"]
    assert late.causes[0].sentence == "11 jobs wait for a worker"
    assert late.causes[0].evidence["drained_in_seconds"] == 330
    assert "4 jobs of other types wait for the same workers." in late.causes[0].detail
    assert late.causes[0].share == 1.0


@pytest.mark.django_db
def test_awaiting_a_callback() -> None:
    make_type(NAME, success="callback", confirm_within_seconds=1200)
    machines("tier2")
    (job_id,) = accept(1, kind=NAME)
    settle([job_id], Verdict.AWAITING, reference="r-1", confirm_in=1200.0, act_in=1200.0)
    overdue(job_id)
    job = of_job(job_id, success="callback", retries_unconfirmed=True)
    assert codes(job) == ["awaiting_confirmation"]
    assert job.causes[0].sentence.startswith("Waiting for a callback until ")
    assert job.causes[0].sentence.endswith(" UTC (in 19 min)")
    assert "another attempt follows" in job.causes[0].detail
    late = of_type()
    assert codes(late) == ["awaiting_confirmation"]
    assert late.causes[0].sentence == "1 job waits for a callback"


@pytest.mark.django_db
def test_waiting_for_its_time() -> None:
    """A type whose jobs wait for their time is not late, and no cause is invented."""
    make_type(NAME)
    machines("tier2")
    now = dt.datetime.now(dt.UTC)
    at = now + dt.timedelta(minutes=12, seconds=30)
    (job_id,) = accept(1, kind=NAME, run_at=at)
    job = of_job(job_id)
    assert codes(job) == ["scheduled"]
    when = f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M:%S}"
    assert job.sentence == f"Waiting for its time: {when} UTC (in 12 min)."
    late = of_type()
    assert late.state == "no_data"
    assert codes(late) == []
    assert [cause.code for cause in late.causes] == ["scheduled"]
    assert late.causes[0].evidence["scheduled"] == 1


def fold_stood_still(minutes: int = 2) -> None:
    fold_all()
    sql(f"UPDATE queues_boardversion SET folded_at = jobs_now() - interval '{minutes} min'")


@pytest.mark.django_db
def test_without_a_scheduler_what_rests_on_rollups_is_not_known() -> None:
    make_type(NAME, dependency="smtp")
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier2"], slots=4, busy=1)
    ids = accept(8, kind=NAME)
    settle(ids, Verdict.FAILED)
    overdue(*ids)
    fold_stood_still()
    board = outcomes.board()
    late = explain_type(NAME, board=board, span=Span.of("15m", now=board.now), broker=True)
    assert late is not None
    assert codes(late)[0] == "scheduler_down"
    provider = one(late, "provider_failing")
    assert provider.verdict == UNKNOWN
    assert "stand still since" in provider.detail
    assert one(late, "retrying").evidence["retry_pressure"] is None
    # The same runs, folded a moment ago, are evidence.
    assert one(of_type(), "provider_failing").verdict == CAUSE
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    assert one(of_type(), "scheduler_down").verdict == NOT


@pytest.mark.django_db
def test_a_broker_that_does_not_answer_comes_before_the_backlog() -> None:
    make_type(NAME)
    machines("tier2")
    ids = accept(3, kind=NAME)
    overdue(*ids)
    assert codes(of_type(broker=False)) == ["broker_unreachable"]
    assert codes(of_job(ids[0], broker=False)) == ["broker_unreachable"]
    # One call that was not answered says little while runs begin.
    lifecycle.settle([confirmed(run) for run in claim(accept(1, kind=NAME))])
    assert codes(of_type(broker=False)) == ["backlog"]
    assert codes(of_type(broker=False), UNKNOWN) == ["broker_unreachable", "provider_failing"]
    sql("UPDATE queues_outcomerollup SET at = at - interval '2 min' WHERE grain = 'minute'")
    assert codes(of_type(broker=False)) == ["broker_unreachable"]


@pytest.mark.django_db
def test_a_running_job() -> None:
    make_type(NAME)
    machines("tier2")
    (job_id,) = accept(1, kind=NAME)
    claim([job_id], worker="host/7.1")
    found = of_job(job_id)
    assert codes(found) == ["running"]
    assert found.sentence.startswith("Attempt 1 is running since ")
    assert found.sentence.endswith(" on host/7.1.")
    assert "Its lease is good until " in found.causes[0].detail
    lifecycle.cancel([job_id], reason=Reason.OPERATOR)
    lose_lease(job_id)
    found = of_job(job_id)
    assert "Its lease ran out at " in found.causes[0].detail
    assert "It was asked to stop." in found.causes[0].detail
    WorkerProcess.objects.filter(kind="scheduler").delete()
    assert codes(of_job(job_id)) == ["scheduler_down", "running"]


@pytest.mark.django_db
def test_a_job_that_is_due_and_free_to_run() -> None:
    """Soon it runs; later nobody knows why not; with all slots busy they are the cause."""
    make_type(NAME)
    machines("tier2", slots=2, busy=1)
    (job_id,) = accept(1, kind=NAME)
    found = of_job(job_id)
    assert codes(found) == []
    assert found.sentence == "Nothing is ahead of it: it should start within seconds."
    set_columns(job_id, raw_due_at="jobs_now() - interval '40 s'")
    found = of_job(job_id)
    assert codes(found, UNKNOWN) == ["backlog"]
    assert found.sentence.endswith("why it waits is not known.")
    machines("tier2", slots=2, busy=2)
    found = of_job(job_id)
    assert codes(found) == ["backlog"]
    assert found.sentence == "It is the next of its type; all 2 slots of tier2 are busy."


@pytest.mark.django_db
def test_what_would_hold_a_job_at_its_time_comes_after_the_time() -> None:
    make_type(NAME)
    machines("tier2")
    (job_id,) = accept(1, kind=NAME, run_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    set_switch(NAME, actor="jane", reason="", paused=True)
    found = of_job(job_id)
    assert codes(found) == ["scheduled", "paused"]
    assert found.causes[1].detail.startswith("It would hold the job then. By jane")


@pytest.mark.django_db
@pytest.mark.parametrize("state", [JobState.CONFIRMED, JobState.DEAD, JobState.EXPIRED, JobState.CANCELLED])
def test_a_settled_job_needs_no_explanation_and_no_statement(state: JobState) -> None:
    make_type(NAME)
    job = make_job(state, type=NAME)
    board = outcomes.board()
    with CaptureQueriesContext(connection) as captured:
        found = explain_job(job, board=board, broker=True)
    assert len(captured) == 0
    assert (found.state, list(found.causes)) == (state, [])
    assert found.sentence.startswith(f"{state.capitalize()} at ")
    assert found.sentence.endswith("nothing holds it.")


@pytest.mark.django_db
def test_a_job_of_a_type_that_is_gone() -> None:
    make_type(NAME)
    machines("tier2")
    (job_id,) = accept(1, kind=NAME)
    sql("DELETE FROM queues_contractrevision")
    sql("DELETE FROM queues_jobtype")
    found = of_job(job_id)
    assert found.causes


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (9.9, "9.9 s"), (45.7, "45 s"), (60, "1 min"), (95, "1 min 35 s"), (700, "11 min"),
     (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)  # fmt: skip
def test_lengths_of_time(seconds: float, expected: str) -> None:
    assert words.length(seconds) == expected
