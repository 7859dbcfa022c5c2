"""The life of a job, one transition at a time: claimed, settled, expired. Races: tests/concurrency."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from queues import lifecycle
from queues.lifecycle import End, Run, Verdict
from queues.models import Job
from queues.states import TERMINAL, JobState, Reason
from tests.factories import (
    TYPE,
    WORKER,
    accept,
    claim,
    confirmed,
    evidence,
    failed,
    fold_all,
    get,
    lose_lease,
    make_job,
    released,
    set_columns,
    sql,
    state_counts,
)
from tests.queues.lives import change_type, kind  # noqa: F401 (a fixture)

pytestmark = pytest.mark.django_db
S = JobState
Shift = Callable[[str], None]


def run_of(job: Job) -> Run:
    """Return the run that holds a job, as its worker remembers it."""
    return Run(
        job.id, job.fence, TYPE, 1, job.attempt, job.begun, "{}", "", None, 0.0, 0.0, "[]", False, None, 15,
        job.root, None, job.checks,
    )  # fmt: skip


def end(run: Run, verdict: Verdict = Verdict.FAILED, **values: Any) -> JobState | None:
    """Settle one run; None when it was superseded."""
    return lifecycle.settle([End(id=run.id, fence=run.fence, verdict=verdict, **values)]).get((run.id, run.fence))


# Claim.


@pytest.mark.parametrize("state", JobState)
def test_claim_takes_waiting_jobs_only(state: JobState) -> None:
    """I-11: whatever a hint says, only accepted and retrying jobs are claimed."""
    job = make_job(state)
    runs = lifecycle.claim([job.id], worker=WORKER)
    if state in (S.ACCEPTED, S.RETRYING):
        [run] = runs
        assert (run.id, run.fence, run.attempt, run.begun) == (job.id, job.fence + 1, job.attempt + 1, job.begun + 1)
        now = get(job.id)
        assert (now.state, now.worker, now.alone, now.finished_at) == (S.PROCESSING, WORKER, True, None)
        assert now.started_at is not None
        assert now.due_at is not None
        assert dt.timedelta(seconds=14.9) < now.due_at - now.started_at < dt.timedelta(seconds=15.1)
    else:
        assert runs == []
        assert get(job.id).fence == job.fence


def test_claim_leaves_what_may_not_run_now(shift_clock: Shift) -> None:
    """Not due, too old, paused: refused in the claim, whoever sent the hint."""
    later, stale, ready = make_job(raw_due_at="jobs_clock() + interval '1 h'"), make_job(), make_job()
    set_columns(stale.id, raw_expires_at="jobs_now() - interval '1 s'")
    assert [r.id for r in lifecycle.claim([later.id, stale.id, ready.id], worker=WORKER)] == [ready.id]
    change_type(paused=True)
    shift_clock("2 hours")
    assert lifecycle.claim([later.id], worker=WORKER) == []
    change_type(paused=False)
    assert [r.id for r in lifecycle.claim([later.id], worker=WORKER)] == [later.id]


def test_claim_takes_each_job_once_and_in_order() -> None:
    """I-08: a doubled hint, a job named twice, unknown ids: each job has one run."""
    ids = accept(3)
    runs = lifecycle.claim([*reversed(ids), *ids, uuid4()], worker=WORKER)
    assert [run.id for run in runs] == ids
    assert lifecycle.claim(ids, worker=WORKER) == []
    assert {get(i).alone for i in ids} == {False}


def test_a_job_to_run_alone_is_not_claimed_in_company() -> None:
    """Scenario 5: after a lost worker a job comes back in a chunk of its own."""
    alone, other = make_job(S.RETRYING, alone=True), make_job()
    assert [r.id for r in lifecycle.claim([alone.id, other.id], worker=WORKER)] == [other.id]
    assert [r.id for r in lifecycle.claim([alone.id], worker=WORKER)] == [alone.id]


def test_nothing_to_do_is_no_error() -> None:
    """Empty batches and ids without rows change nothing."""
    nobody = uuid4()
    assert lifecycle.claim([], worker=WORKER) == lifecycle.claim([nobody], worker=WORKER) == []
    assert lifecycle.settle([]) == lifecycle.rescue([]) == lifecycle.expire([]) == {}
    assert lifecycle.heartbeat([(nobody, 1, 15.0)]) == {}
    assert lifecycle.cancel([nobody], reason=Reason.OPERATOR) == []
    assert lifecycle.replay(nobody, by="me") is None
    assert lifecycle.close_dead_letters([nobody], resolution="ignored", by="me") == set()


# Settle.


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("state", [s for s in JobState if s != S.PROCESSING])
def test_settle_ends_running_jobs_only(state: JobState, verdict: Verdict) -> None:
    """I-11: the end of a run changes nothing once the job is not processing."""
    job = make_job(state, fence=1)
    before = sql("SELECT to_jsonb(j)::text FROM queues_job j")
    assert end(run_of(job), verdict, evidence={"kind": "return"}) is None
    assert sql("SELECT to_jsonb(j)::text FROM queues_job j") == before


def test_evidence_confirms() -> None:
    """I-28: confirmed needs evidence, and says when and of which kind."""
    [run] = claim(accept())
    assert lifecycle.settle([confirmed(run, ref="mail-1", result=[1, {"a": None}])]) == {(run.id, 1): S.CONFIRMED}
    job = get(run.id)
    assert evidence(run.id)["ref"] == "mail-1"
    assert dt.datetime.fromisoformat(evidence(run.id)["at"]) == job.settled_at == job.finished_at
    assert (job.result, job.reason, job.resolution, job.due_at, job.failures) == (
        [1, {"a": None}],
        None,
        None,
        None,
        [],
    )


@pytest.mark.parametrize("wrong", ["earlier", "later", "other job"])
def test_only_the_run_that_holds_the_job_ends_it(wrong: str) -> None:
    """I-09: another fence, or another job's, changes nothing."""
    [run], [other] = claim(accept()), claim(accept())
    fence = {"earlier": run.fence - 1, "later": run.fence + 1, "other job": run.fence + 7}[wrong]
    before = sql("SELECT to_jsonb(j)::text FROM queues_job j ORDER BY id")
    assert lifecycle.settle([confirmed(run, fence=fence)]) == {}
    assert sql("SELECT to_jsonb(j)::text FROM queues_job j ORDER BY id") == before
    assert get(other.id).state == S.PROCESSING


@pytest.mark.parametrize("late", [Verdict.CONFIRMED, Verdict.FAILED, Verdict.RELEASED])
def test_a_release_gives_the_attempt_back_but_not_the_fence(late: Verdict) -> None:
    """I-09, scenario 1: A releases, B claims with the same attempt number, A's late end changes nothing."""
    [job_id] = accept()
    [a] = claim([job_id], worker="a")
    assert lifecycle.settle([released(a)]) == {(job_id, 1): S.ACCEPTED}
    given_back = get(job_id)
    assert (given_back.attempt, given_back.begun, given_back.fence) == (0, 0, 1)
    [b] = claim([job_id], worker="b")
    assert (b.attempt, b.begun, b.fence) == (1, 1, 2)
    assert end(a, late, evidence={"kind": "return"}, reason="permanent_error") is None
    assert lifecycle.heartbeat([(job_id, a.fence, 15.0)]) == {}
    held = get(job_id)
    assert (held.state, held.worker, held.attempt, held.begun) == (S.PROCESSING, "b", 1, 1)


def test_a_failure_waits_and_runs_again(shift_clock: Shift) -> None:
    """A retry waits as long as it was told, and its next run knows of the one before."""
    [run] = claim(accept())
    assert lifecycle.settle([failed(run, retry_in=30.0, fingerprint="f" * 16)]) == {(run.id, 1): S.RETRYING}
    job = get(run.id)
    assert (job.attempt, job.begun, job.fingerprint) == (1, 1, "f" * 16)
    assert job.due_at is not None
    assert job.finished_at is not None
    assert job.due_at - job.finished_at == dt.timedelta(seconds=30)
    assert lifecycle.claim([run.id], worker=WORKER) == []
    shift_clock("31 seconds")
    [again] = claim([run.id])
    assert (again.attempt, again.begun, again.fence) == (2, 2, 2)
    assert '"error_class": "Boom"' in again.failures


def test_attempts_end() -> None:
    """I-10: the last attempt makes a dead letter with its failures in it: the first and the newest, twenty at most."""
    change_type(max_attempts=25)
    [job_id] = accept()
    set_columns(job_id, attempt_limit=25)
    for n in range(1, 26):
        [run] = claim([job_id])
        assert run.attempt == n
        lifecycle.settle([failed(run)])
    job = get(job_id)
    assert (job.state, job.reason, job.resolution, job.attempt) == (S.DEAD, Reason.ATTEMPTS_EXHAUSTED, "open", 25)
    assert [f["attempt"] for f in job.failures] == [1, *range(7, 26)]
    assert {"error_class", "message", "started_at", "finished_at", "worker"} <= set(job.failures[-1])


@pytest.mark.parametrize("reason", ["permanent_error", "rejected", "no_evidence", "no_handler"])
def test_a_final_reason_buries_at_once(reason: str) -> None:
    """No further attempt follows."""
    [run] = claim(accept())
    lifecycle.settle([failed(run, reason=reason)])
    job = get(run.id)
    assert (job.state, job.reason, job.due_at) == (S.DEAD, reason, None)


@pytest.mark.parametrize(("on_stale", "state"), [("expire", S.EXPIRED), ("dead", S.DEAD)])
def test_a_run_that_outlives_its_age_may_end(on_stale: str, state: JobState, shift_clock: Shift) -> None:
    """DESIGN 5: live at its max age: evidence counts; a failure expires."""
    good, bad = claim(accept(2, max_age=60))
    shift_clock("61 seconds")
    written = lifecycle.settle([confirmed(good), failed(bad, on_stale=on_stale)])
    assert written == {(good.id, 1): S.CONFIRMED, (bad.id, 1): state}
    assert get(bad.id).reason == "stale"


@pytest.mark.parametrize(
    ("verdict", "reason", "state"),
    [
        (Verdict.CONFIRMED, None, S.CONFIRMED),
        (Verdict.FAILED, None, S.CANCELLED),
        (Verdict.FAILED, "permanent_error", S.CANCELLED),
        (Verdict.RELEASED, None, S.CANCELLED),
    ],
)
def test_a_cancelled_run_stops_unless_it_has_its_evidence(
    verdict: Verdict, reason: str | None, state: JobState
) -> None:
    """I-31, scenario 11: never both; what a run proves is true all the same."""
    [run] = claim(accept())
    [asked] = lifecycle.cancel([run.id], reason=Reason.OPERATOR)
    assert (asked.state, asked.may_have_acted) == (S.PROCESSING, True)
    assert end(run, verdict, reason=reason, evidence={"kind": "reference", "ref": "r"}) == state
    job = get(run.id)
    assert (job.evidence is not None) == (state == S.CONFIRMED)
    assert job.resolution == (None if state == S.CONFIRMED else "open")


def test_a_running_job_keeps_who_cancelled_it() -> None:
    """Scenario 11: the producer's cancel of a running job ends as the producer's."""
    [run], [lost] = claim(accept()), claim(accept())
    lifecycle.cancel([run.id, lost.id], reason=Reason.PRODUCER)
    lifecycle.settle([failed(run)])
    lose_lease(lost.id)
    lifecycle.rescue([lost.id])
    assert {get(run.id).reason, get(lost.id).reason} == {Reason.PRODUCER}


@pytest.mark.parametrize("how", ["failed", "released", "lost", "cancelled and failed"])
def test_evidence_in_the_row_confirms_however_the_run_ends(how: str) -> None:
    """Scenario 2: true evidence of any run of the lineage settles the job it proves."""
    [run] = claim(accept())
    set_columns(run.id, raw_evidence="""'{"kind": "callback", "ref": "cb"}'""")
    if how == "lost":
        lose_lease(run.id)
        lifecycle.rescue([run.id])
    else:
        if how.startswith("cancelled"):
            lifecycle.cancel([run.id], reason=Reason.OPERATOR)
        lifecycle.settle([released(run) if how == "released" else failed(run)])
    job = get(run.id)
    assert (job.state, evidence(run.id)["ref"], job.reason) == (S.CONFIRMED, "cb", None)


def test_neighbours_in_a_batch_end_each_in_their_own_way() -> None:
    """Scenario 5: one statement, five fates; the same end twice is written once."""
    ok, again, dead, back, gone = claim(accept(5))
    set_columns(gone.id, fence=9)
    ends = [confirmed(ok), failed(again), failed(dead, reason="rejected"), released(back), confirmed(gone)]
    assert lifecycle.settle(ends) == {
        (ok.id, 1): S.CONFIRMED, (again.id, 1): S.RETRYING, (dead.id, 1): S.DEAD, (back.id, 1): S.ACCEPTED,
    }  # fmt: skip
    assert lifecycle.settle(ends) == {}


def test_an_end_named_twice_is_written_once() -> None:
    """I-26: a batch with the same end twice counts it once."""
    [run] = claim(accept())
    assert lifecycle.settle([confirmed(run), confirmed(run)]) == {(run.id, 1): S.CONFIRMED}
    fold_all()
    assert state_counts() == {}
    assert sql("SELECT confirmed FROM queues_outcomerollup WHERE grain = 'day'") == [(1,)]


# Expire.


@pytest.mark.parametrize("on_stale", ["expire", "dead"])
@pytest.mark.parametrize("state", JobState)
def test_expire_ends_what_waits(state: JobState, on_stale: str) -> None:
    """I-13, scenario 17: max age ends every open state; a live run may end by itself."""
    change_type(on_stale=on_stale)
    job = make_job(state) if state in TERMINAL else make_job(state, raw_expires_at="jobs_clock() - interval '1 s'")
    if state in TERMINAL:
        assert lifecycle.expire([job.id]) == {}
        return
    found = lifecycle.stale(limit=10)
    moved = lifecycle.expire([job.id])
    if state == S.PROCESSING:
        assert found == []
        assert moved == {}
        return
    wanted = S.DEAD if on_stale == "dead" or state == S.AWAITING_CONFIRMATION else S.EXPIRED
    assert found == [job.id]
    assert moved == {job.id: wanted}
    now = get(job.id)
    reason = Reason.UNCONFIRMED if state == S.AWAITING_CONFIRMATION else Reason.STALE
    assert (now.state, now.reason, now.resolution, now.due_at) == (wanted, reason, "open", None)
    assert lifecycle.expire([job.id]) == {}


@pytest.mark.parametrize("state", [S.ACCEPTED, S.RETRYING, S.AWAITING_CONFIRMATION])
def test_expire_spares_what_is_in_time(state: JobState) -> None:
    """A sweep that was slow to act looks again."""
    job = make_job(state)
    assert lifecycle.stale(limit=10) == []
    assert lifecycle.expire([job.id]) == {}
