"""What a review proved of runs, and of migrations beside them. A letter with a number names the finding."""

from __future__ import annotations

import os
import re
from io import StringIO
from typing import Final

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from queues import confirmation, contracts, handlers, lifecycle
from queues.confirmation import Evidence
from queues.handlers import Confirmed, JobContext, RetryLater
from queues.lifecycle import End, Verdict
from queues.models import JobType
from queues.runtime import heartbeat
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable
from queues.runtime.steps import RunSteps
from queues.states import JobState
from tests.factories import TYPE, accept, claim, failed, get, lose_lease, make_type, set_columns, sql
from tests.queues.reviewed import ASK, CALL, Clock, S, World, begun_before, poll, run_once, waits

# A7: leases.


def test_a_lowered_lease_does_not_shorten_the_leases_in_hand(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A7, I-08: the next beat of a run keeps to the lease that it was claimed with; a longer one counts at once."""
    beats = Clock()
    monkeypatch.setattr(heartbeat, "now", beats.monotonic)
    make_type(lease_seconds=60)
    [run] = claim(accept())
    heart = Heart(LeaseTable(), parent=os.getppid(), node="node", queues=["tier2"], slots=1)
    slot = heart.table.take_slot()
    slot.hold(run.id, run.fence, run.lease_seconds, since=beats.now)
    slot.begin(run.id, run.fence, hard_limit=0.0)
    for lease, expected in ((5, 60), (600, 600)):
        JobType.objects.update(lease_seconds=lease)
        contracts.forget()
        beats.now += 21
        heart.beat()
        assert [held.renewed_at for held in heart.table.held()] == [beats.now]
        [(left,)] = sql("SELECT extract(epoch FROM due_at - jobs_clock())::float8 FROM queues_job")
        assert expected - 5 < left <= expected


# B11: steps whose result is lost, or was another's.


def test_a_step_whose_result_cannot_be_kept_is_done_once(committed: World) -> None:
    """B11, I-28: the mail went out; no other attempt sends it again."""
    mails = []

    def mail() -> object:
        mails.append("sent")
        return object()

    committed.meanwhile = lambda job: job.once("mail", mail)
    [job_id] = accept()
    run_once(job_id)
    job = get(job_id)
    assert (job.state, job.reason, job.failures[-1]["error_class"]) == (S.DEAD, "permanent_error", "StepInvalid")
    assert mails == ["sent"]


def test_a_step_goes_on_with_the_result_that_is_kept(committed: World) -> None:
    """B11: the run that was superseded ends the same step meanwhile; every run goes on with one and the same value."""
    [job_id] = accept()
    [one] = claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    [two] = claim([job_id])

    def charge() -> str:
        lifecycle.keep_step(one.id, one.fence, root=one.root, name="charge", result='"ch_1"')
        return "ch_2"

    assert RunSteps(two).once("charge", charge) == "ch_1"
    assert RunSteps(two).once("charge", lambda: "never") == "ch_1"


# C: ends of runs.


@pytest.mark.parametrize(("policy", "state"), [("retry", S.RETRYING), ("dead", S.DEAD)])
def test_a_retryable_rejection_does_not_spare_a_lost_run(world: World, policy: str, state: JobState) -> None:
    """C, I-14: a lost run is what its contract makes of lost runs, whatever the provider would allow."""
    make_type(**CALL | {"on_worker_lost": policy})
    [run] = claim(accept())
    confirmation.by_token(run.id, Evidence(outcome="rejected", retryable=True, run=run.fence))
    lifecycle.rescue([run.id], dead_runs=[(run.id, run.fence)])
    job = get(run.id)
    assert (job.state, job.failures[-1]["error_class"]) == (state, "WorkerLost")


def test_a_retryable_rejection_does_not_hide_poison(world: World) -> None:
    """C, I-14: what kills its worker again and again is found, though the provider says "again" each time."""
    make_type(**CALL | {"poison_after": 2})
    [job_id] = accept()
    for _ in range(2):
        [run] = claim([job_id])
        confirmation.by_token(job_id, Evidence(outcome="rejected", retryable=True, run=run.fence))
        lifecycle.rescue([job_id], dead_runs=[(job_id, run.fence)])
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, "poison")


def test_a_final_rejection_of_a_lost_run_is_told(world: World) -> None:
    """C: dead as `rejected`, in the provider's words and not as a lost worker."""
    make_type(**CALL)
    [run] = claim(accept())
    confirmation.by_token(run.id, Evidence(outcome="rejected", detail="card declined", run=run.fence))
    lifecycle.rescue([run.id], dead_runs=[(run.id, run.fence)])
    job = get(run.id)
    assert (job.state, job.reason, job.failures[-1]["message"]) == (S.DEAD, "rejected", "card declined")


def test_an_early_retryable_rejection_waits_for_the_backoff(world: World) -> None:
    """C: it came while the body ran; the next attempt is no sooner than after one that came later."""
    make_type(**CALL)
    world.meanwhile = lambda job: confirmation.by_token(
        job.id, Evidence(outcome="rejected", retryable=True, run=job.run)
    )
    [job_id] = accept()
    run_once(job_id)
    assert (get(job_id).state, waits(job_id)) == (S.RETRYING, 20.0)


def test_a_worker_that_knows_no_check_runs_nothing_in_the_dark(world: World) -> None:
    """C, I-28: the contract wants the world asked first; a worker of the old release leaves it to another one."""
    handlers._checks.pop(TYPE)
    make_type(**ASK)
    [job_id] = accept()
    begun_before(job_id)
    run_once(job_id)
    job = get(job_id)
    assert (job.state, job.attempt, job.check_failures, world.ran) == (S.RETRYING, 0, 1, [])
    assert (job.failures[-1]["error_class"], waits(job_id)) == ("NoCheck", 20.0)
    handlers.check(TYPE)(world.check)
    set_columns(job_id, raw_due_at="jobs_clock()")
    run_once(job_id)
    assert (get(job_id).state, len(world.ran)) == (S.AWAITING_CONFIRMATION, 1)


@pytest.mark.parametrize(("limit", "allowed"), [(90, "95s"), (0, None)])
def test_an_atomic_handler_may_idle_as_long_as_it_may_run(committed: World, limit: int, allowed: str | None) -> None:
    """C: it works outside the database meanwhile; the connection is as before when it has ended."""
    sql("UPDATE queues_jobtype SET hard_limit_seconds = %s", limit)
    sql("UPDATE queues_contractrevision SET fields = fields || jsonb_build_object('hard_limit_seconds', %s)", limit)
    contracts.forget()

    def idle_timeout() -> str:
        return str(sql("SHOW idle_in_transaction_session_timeout")[0][0])

    seen = []
    before = idle_timeout()
    handlers._handlers.pop(TYPE)

    @handlers.handler(TYPE, atomic=True)
    def work(job: JobContext) -> Confirmed:
        seen.append(idle_timeout())
        return Confirmed("x")

    [job_id] = accept()
    run_once(job_id)
    assert get(job_id).state == S.CONFIRMED
    assert seen == [allowed or before]
    assert idle_timeout() == before


# B14: given back.


@pytest.mark.parametrize("verdict", [Verdict.RELEASED, Verdict.PUT_OFF])
def test_a_suspect_that_was_given_back_still_runs_alone(world: World, verdict: Verdict) -> None:
    """B14, I-14: its body did not begin, so nothing is known that would clear it; an end of its own clears it."""
    make_type()
    [job_id, neighbour] = accept(2)
    claim([job_id, neighbour])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    assert get(job_id).alone
    [run] = claim([job_id])
    lifecycle.settle([End(id=run.id, fence=run.fence, verdict=verdict)])
    assert get(job_id).alone
    [other] = accept()
    assert [run.id for run in lifecycle.claim([job_id, other], worker="test/1.1")] == [other]
    [run] = claim([job_id])
    lifecycle.settle([failed(run)])
    assert not get(job_id).alone


def test_an_attempt_is_put_off_by_a_second_at_least(world: World) -> None:
    """B14: a check that says "at once" does not keep a worker busy, and its row of failures fits its column."""
    make_type(success="reference")
    [job_id] = accept()
    begun_before(job_id)
    world.answer = RetryLater(0)
    run_once(job_id)
    assert (get(job_id).state, get(job_id).check_failures, waits(job_id)) == (S.RETRYING, 1, 1.0)
    set_columns(job_id, raw_due_at="jobs_clock()", check_failures=32767)
    run_once(job_id)
    assert (get(job_id).state, get(job_id).check_failures) == (S.RETRYING, 1000)


def test_a_row_of_failing_checks_fits_its_column(world: World) -> None:
    """B14: while a proof is awaited, too."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    set_columns(job_id, check_failures=32767)
    world.answer = RetryLater(0)
    poll(job_id)
    assert (get(job_id).state, get(job_id).check_failures) == (S.AWAITING_CONFIRMATION, 1000)


# B15: migrations beside the workers of the release before.


_BODY: Final = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)
_MADE: Final = re.compile(r'CREATE TABLE "?(\w+)', re.IGNORECASE)
_LOCKS: Final = re.compile(
    r'(?:ALTER TABLE|LOCK TABLE|(?:CREATE|DROP)\b[^;]*?\b(?:INDEX|TRIGGER)\b[^;]*?\bON)\s+(?:ONLY\s+)?"?(\w+)',
    re.IGNORECASE,
)


def test_no_migration_locks_the_jobs_together_with_another_table(db: None) -> None:
    """B15: a claim reads the types first and the jobs then; whoever locks both in one transaction meets it half-way."""
    loader = MigrationLoader(connection)
    names = sorted(name for app, name in loader.disk_migrations if app == "queues" and name > "0003")
    locked = {}
    for name in names:
        out = StringIO()
        call_command("sqlmigrate", "queues", name, stdout=out)
        text = _BODY.sub("", out.getvalue())
        locked[name] = set(_LOCKS.findall(text)) - set(_MADE.findall(text))
    alone = [name for name, tables in locked.items() if "queues_job" in tables]
    assert alone == ["0003_awaiting", "0006_stage"]
    assert all(locked[name] == {"queues_job"} for name in alone)
    assert "queues_jobtype" in locked["0004_confirmation"]
