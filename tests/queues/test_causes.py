"""Why is it late, why is it not running: prepared situations, each explained rightly for the job and for its type."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import lifecycle, outcomes, workers
from queues.contract_switches import set_switch
from queues.lifecycle import End, Verdict
from queues.models import Job, WorkerProcess
from queues.outcomes import Span, causes
from queues.outcomes.causes import Cause, Why, change_of, explain_job, explain_type, facts, words
from queues.outcomes.causes.checks import judge
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
    at = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=12, seconds=30)
    (job_id,) = accept(1, kind=NAME, run_at=at)
    job = of_job(job_id)
    assert codes(job) == ["scheduled"]
    assert job.sentence == f"Waiting for its time: {at:%H:%M:%S} UTC (in 12 min)."
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


@pytest.mark.parametrize(
    ("runs", "failed", "retries_explain", "expected"),
    [
        (0, 0, False, UNKNOWN),
        (4, 0, True, UNKNOWN),
        (1, 1, True, UNKNOWN),
        (3, 2, False, CAUSE),
        (4, 1, True, UNKNOWN),
        (5, 0, True, NOT),
        (100, 19, False, NOT),
        (100, 20, False, CAUSE),
        (100, 6, True, CAUSE),
        (100, 4, True, NOT),
    ],
)
def test_a_provider_is_judged_by_enough_runs(
    runs: int, failed: int, retries_explain: bool, expected: causes.Verdict
) -> None:
    assert judge(facts.Recent(runs=runs, failed=failed), retries_explain=retries_explain) == expected


@pytest.mark.parametrize(
    ("minutes", "failing", "well"),
    [
        ([(9, 10, 0), (2, 10, 0), (1, 10, 9), (0, 2, 2)], 1, None),
        ([(9, 10, 9), (2, 10, 9), (0, 2, 2)], None, None),
        ([(5, 10, 9), (4, 10, 9), (1, 18, 0), (0, 12, 1)], None, 1),
        ([(5, 10, 9), (4, 10, 9), (1, 18, 2), (0, 12, 1)], None, None),
        ([(5, 10, 9), (0, 20, 0)], None, None),
        ([(5, 10, 9), (0, 4, 0)], None, None),
        ([(5, 10, 0), (0, 4, 0)], None, None),
        ([], None, None),
    ],
)
def test_since_when_a_provider_fails_or_is_well(
    minutes: list[tuple[int, int, int]], failing: int | None, well: int | None
) -> None:
    now = 1_800_000_000
    rows = [(NAME, now - 60 * ago, runs, 0, failed, 0) for ago, runs, failed in minutes]
    found = facts.recent_of(rows)
    at = [None if ago is None else dt.datetime.fromtimestamp(now - 60 * ago, dt.UTC) for ago in (failing, well)]
    assert [found.failing_since, found.well_since] == at


@pytest.mark.django_db
def test_a_provider_that_has_just_recovered_is_said_to_be_well() -> None:
    make_type(NAME, dependency="smtp")
    machines("tier2")
    ids = accept(8, kind=NAME)
    settle(ids, Verdict.FAILED)
    overdue(*ids)
    fold_all()
    for minutes in (3, 1):
        fold_all()
        sql(f"UPDATE queues_outcomerollup SET at = at - interval '{minutes} min' WHERE grain = 'minute'")
        lifecycle.settle([confirmed(run) for run in claim(accept(3, kind=NAME))])
    first = of_type().causes[0]
    assert (first.code, first.verdict) == ("provider_failing", CAUSE)
    assert re.fullmatch(r"smtp failed 57.1% of 14 runs in 10 min; it is well since [\d:]{8} UTC", first.sentence)


@pytest.mark.django_db
def test_who_is_on_time_has_no_cause() -> None:
    """Failures and changes of a type that keeps its promise explain nothing."""
    make_type(NAME, dependency="smtp")
    machines("tier2")
    settle(accept(20, kind=NAME), Verdict.FAILED)
    accept(3, kind=NAME)
    board = outcomes.board()
    span = Span.of("15m", now=board.now)
    good = [outcomes.Counts(due=10, kept=10, runs=10, failed=9) for _ in span.slots]
    late = of_type(series=good)
    assert (late.state, late.causes) == ("on_time", [])
    assert late.sentence == "Nothing is late: the promise is kept (100%) and no open job is past its window."
    # What stops its jobs is said all the same: they will be late.
    set_switch(NAME, actor="jane", reason="", paused=True)
    assert codes(of_type(series=good)) == ["paused"]


@pytest.mark.django_db
def test_a_pause_that_holds_next_to_nothing_is_no_first_cause() -> None:
    make_type(NAME, success="callback")
    machines("tier2")
    ids = accept(12, kind=NAME)
    settle(ids, Verdict.AWAITING, confirm_in=900.0, act_in=900.0)
    overdue(*ids)
    set_switch(NAME, actor="jane", reason="", paused=True)
    assert codes(of_type()) == ["awaiting_confirmation"]
    (waiting,) = accept(1, kind=NAME)
    overdue(waiting)
    assert codes(of_type()) == ["awaiting_confirmation", "paused"]


@pytest.mark.django_db
def test_a_disabled_type_refuses_new_jobs_and_that_makes_none_late() -> None:
    make_type(NAME)
    machines("tier2")
    overdue(*accept(1, kind=NAME))
    set_switch(NAME, actor="jane", reason="moved", enabled=False)
    found = one(of_type(), "disabled")
    assert found.verdict == NOT
    assert "By jane" in found.detail


def falling(span: Span, *, runs: int = 10, failed: int = 0) -> list[outcomes.Counts]:
    """Return a series that keeps its promise until five slots before its end."""
    n = len(span.slots)
    bad = outcomes.Counts(due=10, kept=2, runs=runs, failed=failed)
    return [outcomes.Counts(due=10, kept=10, runs=runs)] * (n - 5) + [bad] * 5


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([("max_attempts", "6", "10")], UNKNOWN),
        ([("window_seconds", "300", "60")], CAUSE),
        ([("target_ratio", "empty", "0.99"), ("window_seconds", 60, 300)], UNKNOWN),
        ([("target_ratio", 0.9, 0.99)], CAUSE),
    ],
)
def test_a_version_shortly_before_is_a_cause_only_if_it_promises_more(
    rows: list[tuple[str, Any, Any]], verdict: causes.Verdict
) -> None:
    make_type(NAME)
    machines("tier2")
    now = outcomes.board().now
    span = Span.of("6h", now=now)
    since = span.slots[-5]
    versions = [
        change_of(version=8, at=since - dt.timedelta(minutes=3), actor="mira", rows=rows),
        change_of(version=7, at=since - dt.timedelta(hours=2), actor="tomas", rows=[("window_seconds", 300, 60)]),
    ]
    late = of_type(span="6h", series=falling(span), changes=versions)
    found = one(late, "contract_changed")
    assert found.verdict == verdict
    assert (found.evidence["version"], found.evidence["versions"]) == (8, [8])
    assert late.state == "late"
    assert one(of_type(span="6h", series=falling(span), changes=versions[1:]), "contract_changed").verdict == NOT


@pytest.mark.django_db
def test_a_provider_that_is_well_again_explains_what_was_late() -> None:
    make_type(NAME, dependency="smtp")
    machines("tier2")
    lifecycle.settle([confirmed(run) for run in claim(accept(20, kind=NAME))])
    # Inside their window: they hold nothing up.
    accept(5, kind=NAME)
    span = Span.of("6h", now=outcomes.board().now)
    stages = [
        outcomes.Stage(name=name, n=9, seconds=9.0, share=share, p95=1.0)
        for name, share in (("waiting", 0.02), ("running", 0.05), ("retrying", 0.93), ("awaiting", 0.0))
    ]
    late = of_type(span="6h", series=falling(span, failed=5), stages=stages, changes=[])
    assert codes(late)[:2] == ["provider_failing", "retrying"]
    assert late.causes[0].sentence.startswith("smtp failed 50% of 50 runs since ")
    assert late.causes[0].sentence.endswith("; it is well now")
    assert one(late, "backlog").verdict == NOT


@pytest.mark.django_db
def test_runs_that_take_the_time_or_lose_their_worker() -> None:
    make_type(NAME)
    machines("tier2")
    span = Span.of("6h", now=outcomes.board().now)
    stages = [outcomes.Stage(name="running", n=9, seconds=90.0, share=0.8, p95=70.0)]
    late = of_type(span="6h", series=falling(span), stages=stages, changes=[])
    assert codes(late) == ["slow_runs"]
    assert late.causes[0].evidence["p95_seconds"] == 70.0
    runs = claim(accept(4, kind=NAME))
    lose_lease(*(run.id for run in runs))
    lifecycle.rescue([run.id for run in runs])
    found = one(of_type(span="6h", series=falling(span), stages=[], changes=[]), "runs_lost")
    assert (found.verdict, found.evidence["lost"]) == (CAUSE, 4)
    # A worker that dies says nothing about the provider.
    assert one(of_type(span="6h", series=falling(span)), "provider_failing").verdict != CAUSE


@pytest.mark.django_db
def test_a_range_of_the_past_is_explained_by_its_own_numbers() -> None:
    """How things stand now, a pause and jobs that wait, explains nothing of yesterday."""
    make_type(NAME, dependency="smtp")
    machines()
    overdue(*accept(3, kind=NAME))
    set_switch(NAME, actor="jane", reason="", paused=True)
    fold_all()
    board = outcomes.board()
    span = Span.between(board.now - dt.timedelta(hours=9), board.now - dt.timedelta(hours=3), now=board.now)
    late = explain_type(
        NAME, board=board, span=span, broker=False, series=falling(span, failed=5), stages=[], changes=[]
    )
    assert late is not None
    assert codes(late) == ["provider_failing"]
    assert {cause.code for cause in late.causes} == {"provider_failing", "backlog", "retrying", "contract_changed"}
    assert "of that time are not judged" in late.sentence


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


@pytest.mark.django_db
def test_counts_are_bounded_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "LOOK_AT_MOST", 5)
    monkeypatch.setattr(causes.of_type, "LOOK_AT_MOST", 5)
    monkeypatch.setattr(causes.of_job, "LOOK_AT_MOST", 5)
    make_type(NAME)
    machines("tier2")
    ids = accept(12, kind=NAME)
    overdue(*ids)
    assert of_job(ids[-1]).sentence == "5 or more jobs of this type are ahead of it."
    found = of_type().causes[0]
    assert found.sentence == "5 or more jobs wait for a worker"
    assert found.evidence["waiting"] == 5
    assert found.evidence["drained_in_seconds"] is None


@pytest.mark.django_db
def test_an_explanation_is_three_statements_on_indexes() -> None:
    """The same cost whatever the number of jobs: with sequential scans forbidden none is left in a plan."""
    make_type(NAME)
    machines("tier2")
    ids = accept(50, kind=NAME)
    settle(accept(50, kind=NAME), Verdict.FAILED)
    overdue(*ids[:20])
    fold_all()
    sql("ANALYZE queues_job")
    sql("SET LOCAL enable_seqscan = off")
    board, job = outcomes.board(), Job.objects.get(id=ids[30])
    span = Span.of("6h", now=board.now)
    with CaptureQueriesContext(connection) as captured:
        explain_type(NAME, board=board, span=span, broker=True, series=falling(span), stages=[], changes=[])
    assert len(captured) == 3
    with CaptureQueriesContext(connection) as asked:
        explain_job(job, board=board, broker=True)
    assert len(asked) == 3
    for query in [*captured, *asked]:
        if "queues_job " in query["sql"]:
            switched_off, asked_for, _ = query["sql"].split("; ")
            assert switched_off == "SET LOCAL enable_sort = off"
            plan = "\n".join(row[0] for row in sql(f"EXPLAIN {asked_for}"))
            assert not re.search(r"Seq Scan on queues_job_\d", plan), plan
            assert re.search(r"Index.* Scan.*queues_job_\d", plan), plan


@pytest.mark.django_db
def test_a_burst_that_no_statistics_know_is_not_read_whole() -> None:
    """The planner believes that there is one job; the parts that count up to a bound must still end there."""
    make_type(NAME)
    machines("tier2")
    job = make_job(type=NAME)
    sql("ANALYZE queues_job")
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    columns = ", ".join(f'"{f.column}"' for f in Job._meta.concrete_fields if f.name not in ("id", "root", "failures"))
    sql(
        f"INSERT INTO queues_job (id, root, {columns}) SELECT id, id, {columns} FROM ("
        f"SELECT jobs_uuid7() AS id, {columns} FROM queues_job CROSS JOIN generate_series(1, 20000)) AS t"
    )
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    for ask in (lambda: facts.open_jobs(NAME, tiers=[2]), lambda: facts.ahead_of(job)):
        with CaptureQueriesContext(connection) as captured:
            ask()
        sql("SET LOCAL enable_sort = off")
        plan = "\n".join(row[0] for row in sql(f"EXPLAIN (ANALYZE, TIMING OFF) {captured[0]['sql'].split('; ')[1]}"))
        sql("SET LOCAL enable_sort = on")
        read = [float(n) for n in re.findall(r"Scan .*?actual rows=([0-9.]+)", plan)]
        removed = [int(n) for n in re.findall(r"Rows Removed by Filter: ([0-9]+)", plan)]
        assert max([*read, *removed]) <= facts.LOOK_AT_MOST + 1, plan


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.44, "0.4 s"), (9.9, "9.9 s"), (45.7, "45 s"), (60, "1 min"), (95, "1 min 35 s"), (700, "11 min"),
     (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)  # fmt: skip
def test_lengths_of_time(seconds: float, expected: str) -> None:
    assert words.length(seconds) == expected
