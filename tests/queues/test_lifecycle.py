"""The life of a job, one transition at a time, and the counts that each leaves behind. Races: tests/concurrency."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queues import broker, lifecycle
from queues.accept import enqueue
from queues.lifecycle import End, Run, Verdict
from queues.models import DedupeKey, Job, JobType
from queues.states import OPEN, REPLAYABLE, TERMINAL, JobState, Reason
from tests.factories import (
    TYPE,
    WORKER,
    accept,
    buckets,
    claim,
    confirmed,
    evidence,
    failed,
    fold_all,
    get,
    lose_lease,
    make_job,
    make_type,
    released,
    set_columns,
    sql,
    state_counts,
    true_counts,
)

pytestmark = pytest.mark.django_db
S = JobState
Shift = Callable[[str], None]


@pytest.fixture(autouse=True)
def kind(db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type with five attempts and one second between them; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    return make_type(backoff="fixed", backoff_base_seconds=1.0)


def change_type(**values: Any) -> None:
    """Change the newest contract and its revision."""
    JobType.objects.filter(name=TYPE).update(**values)
    for name, value in values.items():
        sql("UPDATE queues_contractrevision SET fields = fields || jsonb_build_object(%s::text, %s)", name, value)


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


# Heartbeat and rescue.


def test_a_heartbeat_extends_only_what_it_names() -> None:
    """Scenario 4: (id, fence) pairs, never a worker's name; and it says which runs are to stop."""
    a, b, c = claim(accept(3))
    lose_lease(a.id, b.id, c.id)
    lifecycle.cancel([b.id], reason=Reason.OPERATOR)
    assert lifecycle.heartbeat([(a.id, 1, 15.0), (b.id, 1, 15.0), (c.id, 2, 15.0)]) == {
        (a.id, 1): False,
        (b.id, 1): True,
    }
    assert lifecycle.lost(limit=10) == [c.id]


@pytest.mark.parametrize("state", [s for s in JobState if s != S.PROCESSING])
def test_a_heartbeat_revives_nothing(state: JobState) -> None:
    """I-09: a run that is over has no lease to extend."""
    job = make_job(state, fence=1)
    assert lifecycle.heartbeat([(job.id, 1, 15.0)]) == {}
    assert get(job.id).due_at == job.due_at


@pytest.mark.parametrize("state", JobState)
def test_rescue_takes_lost_runs_only(state: JobState) -> None:
    """I-16: every other state stays; a live lease stays; a second rescue finds nothing."""
    job = make_job(state)
    assert lifecycle.rescue([job.id]) == {}
    if state == S.PROCESSING:
        lose_lease(job.id)
        assert lifecycle.lost(limit=10) == [job.id]
        assert lifecycle.rescue([job.id]) != {}
    assert lifecycle.lost(limit=10) == []
    assert lifecycle.rescue([job.id]) == {}


def test_a_lost_run_costs_a_crash_and_is_due_at_once() -> None:
    """I-14, I-15: crashes and attempts are counted apart; the loss is in the record and the next run is told."""
    [run] = claim(accept())
    lose_lease(run.id)
    assert lifecycle.rescue([run.id]) == {run.id: S.RETRYING}
    job = get(run.id)
    assert (job.attempt, job.crashes, job.begun, job.fence, job.alone) == (0, 1, 1, 1, True)
    assert [f["error_class"] for f in job.failures] == ["WorkerLost"]
    [again] = claim([run.id])
    assert (again.attempt, again.begun, again.fence) == (1, 2, 2)
    assert lifecycle.settle([confirmed(run)]) == {}, "I-09: the lost run's own end comes too late"


def test_a_run_named_dead_is_rescued_before_its_lease_ends() -> None:
    """I-14: a heartbeat process that saw its child die need not wait; the fence keeps a successor safe."""
    a, b = claim(accept(2))
    assert lifecycle.rescue([a.id, b.id], dead_runs=[(a.id, a.fence), (b.id, b.fence + 1)]) == {a.id: S.RETRYING}
    assert get(b.id).state == S.PROCESSING


def test_only_runs_that_were_alone_count_towards_poison() -> None:
    """I-15, scenario 5: a neighbour may have been the culprit; three lone losses bury the job."""
    ids = accept(2)
    for _ in range(2):
        runs = claim(ids)
        set_columns(ids[0], raw_due_at="jobs_now() - interval '1 s'")
        set_columns(ids[1], raw_due_at="jobs_now() - interval '1 s'")
        lifecycle.rescue(ids)
        assert {get(i).crashes for i in ids} == {0}
        for run in runs:
            set_columns(run.id, alone=False)
    for n in (1, 2, 3):
        claim([ids[0]])
        lose_lease(ids[0])
        lifecycle.rescue([ids[0]])
        assert get(ids[0]).crashes == n
    job = get(ids[0])
    assert (job.state, job.reason, job.resolution) == (S.DEAD, Reason.POISON, "open")
    assert (job.attempt, job.begun) == (0, 5)


def test_a_lost_worker_can_mean_the_end() -> None:
    """`on_worker_lost = dead`: what may have acted is not run again."""
    [run] = claim(accept())
    change_type(on_worker_lost="dead")
    lose_lease(run.id)
    assert lifecycle.rescue([run.id]) == {run.id: S.DEAD}


def test_a_job_is_rescued_by_the_promise_of_its_version() -> None:
    """I-44: the newest contract says dead, the job's own says retry."""
    [run] = claim(accept())
    JobType.objects.filter(name=TYPE).update(version=2, on_worker_lost="dead", poison_after=1)
    lose_lease(run.id)
    assert lifecycle.rescue([run.id]) == {run.id: S.RETRYING}


def test_losses_do_not_pile_up_without_end() -> None:
    """The record of failures is capped, also for lost runs."""
    [job_id] = accept()
    set_columns(job_id, attempt_limit=100, raw_failures="(SELECT jsonb_agg(n) FROM generate_series(1, 20) AS n)")
    claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    failures = get(job_id).failures
    assert len(failures) == 20
    assert failures[-1]["error_class"] == "WorkerLost"


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


# Cancel, replay, close.


@pytest.mark.parametrize("state", JobState)
def test_cancel_in_every_state(state: JobState) -> None:
    """I-31: waiting → cancelled, running → asked to stop, settled → nothing; a second cancel changes nothing."""
    job = make_job(state)
    answer = lifecycle.cancel([job.id], reason=Reason.PRODUCER)
    now = get(job.id)
    if state in TERMINAL:
        assert answer == []
        assert now.state == state
        return
    [one] = answer
    assert one.state == (S.PROCESSING if state == S.PROCESSING else S.CANCELLED) == now.state
    assert now.cancel_requested
    assert now.reason == Reason.PRODUCER
    assert lifecycle.cancel([job.id], reason=Reason.PRODUCER) == []
    assert lifecycle.claim([job.id], worker=WORKER) == []


def test_cancel_says_whether_something_may_have_happened() -> None:
    """Scenario 11: `effect` is possible as soon as a run may have begun."""
    [fresh] = accept()
    [run] = claim(accept())
    lifecycle.settle([failed(run, retry_in=60)])
    answers = {c.id: c.may_have_acted for c in lifecycle.cancel([fresh, run.id], reason=Reason.OPERATOR)}
    assert answers == {fresh: False, run.id: True}


@pytest.mark.parametrize("state", JobState)
def test_replay_in_every_state(state: JobState) -> None:
    """I-30: dead, expired and cancelled jobs have one child, whatever is clicked; the others none."""
    job = make_job(state)
    child = lifecycle.replay(job.id, by="me")
    if state not in REPLAYABLE:
        assert child is None
        assert Job.objects.count() == 1
        return
    assert child is not None
    assert lifecycle.replay(job.id, by="you") is None
    parent, new = get(job.id), get(child)
    assert (parent.state, parent.resolution, parent.replayed_by, parent.resolved_by) == (state, "replayed", child, "me")
    assert (new.state, new.replay_of, new.root, new.payload) == (S.ACCEPTED, job.id, job.id, job.payload)
    assert (new.idempotency_key, bytes(new.request_hash)) == (job.idempotency_key, bytes(job.request_hash))
    assert (new.attempt, new.fence, new.crashes, new.failures) == (0, 0, 0, [])


def _dead(**overrides: Any) -> UUID:
    receipt = enqueue(TYPE, {"n": 1}, **overrides)
    [run] = claim([receipt.job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])
    return receipt.job_id


def test_a_replay_is_told_of_its_parents_runs() -> None:
    """Scenario 15: the dangerous run is the first one of a replay; one whose parent never ran is not."""
    child = lifecycle.replay(_dead(), by="me")
    assert child is not None
    [run] = claim([child])
    assert (run.attempt, run.fence) == (1, 1)
    assert run.begun == 2, "maybe_duplicate"
    [fresh] = accept()
    lifecycle.cancel([fresh], reason=Reason.OPERATOR)
    unborn = lifecycle.replay(fresh, by="me")
    assert unborn is not None
    [run] = claim([unborn])
    assert run.begun == 1


def test_a_replay_moves_the_key_along_the_lineage() -> None:
    """Scenario 15: only the newest is replayed; the key follows it and keeps its first hash; root is the first job."""
    first = _dead(dedupe_key="k")
    kept = bytes(DedupeKey.objects.get().request_hash)
    second = lifecycle.replay(first, by="me")
    assert second is not None
    assert DedupeKey.objects.get().job_id == second
    [run] = claim([second])
    lifecycle.settle([failed(run, reason="permanent_error")])
    assert lifecycle.replay(first, by="me") is None, "a fork of the lineage"
    third = lifecycle.replay(second, by="me")
    assert third is not None
    assert DedupeKey.objects.get().job_id == third
    assert bytes(DedupeKey.objects.get().request_hash) == kept
    assert (get(third).root, get(third).replay_of) == (first, second)
    assert {get(i).idempotency_key for i in (first, second, third)} == {get(first).idempotency_key}


def test_a_replay_is_refused_when_its_key_moved_on() -> None:
    """Scenario 15: the key belongs to a newer job: nothing is written, nothing is marked."""
    first = _dead(dedupe_key="k")
    sql("UPDATE queues_dedupekey SET job_id = %s", uuid4())
    assert lifecycle.replay(first, by="me") is None
    assert (get(first).resolution, get(first).replayed_by, Job.objects.count()) == ("open", None, 1)


def test_a_replay_needs_its_payload_and_an_enabled_type() -> None:
    """An erased payload cannot be replayed; a disabled type takes no jobs, replays neither."""
    erased, off = make_job(S.DEAD), make_job(S.DEAD)
    sql("UPDATE queues_job SET payload = NULL, erased_at = jobs_clock() WHERE id = %s", erased.id)
    assert lifecycle.replay(erased.id, by="me") is None
    JobType.objects.update(enabled=False)
    assert lifecycle.replay(off.id, by="me") is None


def test_a_replay_is_accepted_under_the_newest_promise() -> None:
    """A new job, a new promise: tier, version, window and attempts are those of now."""
    first = _dead()
    JobType.objects.update(version=2, tier_id=1, window_seconds=9, max_attempts=2, max_age_seconds=100)
    child = lifecycle.replay(first, by="me")
    assert child is not None
    new = get(child)
    assert (new.contract_version, new.tier, new.window_seconds, new.attempt_limit) == (2, 1, 9, 2)
    assert new.expires_at - new.ready_at == dt.timedelta(seconds=100)


@pytest.mark.parametrize("state", JobState)
def test_close_resolves_dead_letters_once(state: JobState) -> None:
    """I-30: one action; a closed dead letter is not replayed either."""
    job = make_job(state)
    closed = lifecycle.close_dead_letters([job.id], resolution="ignored", by="me")
    assert closed == ({job.id} if state == S.DEAD else set())
    assert lifecycle.close_dead_letters([job.id], resolution="cancelled", by="you") == set()
    if state == S.DEAD:
        assert (get(job.id).resolution, get(job.id).resolved_by) == ("ignored", "me")
        assert lifecycle.replay(job.id, by="you") is None


# The counts.


def _rollup(*names: str, grain: str = "day") -> dict[str, int]:
    columns = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names)
    return dict(zip(names, sql(f"SELECT {columns} FROM queues_outcomerollup WHERE grain = %s", grain)[0], strict=True))


def test_a_cohort_is_the_minute_a_job_became_ready(shift_clock: Shift) -> None:
    """DESIGN 5: in time, late, dead and cancelled jobs of one minute; a replay is in no cohort."""
    ids = accept(6)
    set_columns(ids[0], raw_ready_at="ready_at")
    in_time, late, dead, quiet, *_ = claim(ids)
    lifecycle.settle([confirmed(in_time)])
    lifecycle.cancel([ids[4]], reason=Reason.OPERATOR)  # running: asked
    lifecycle.cancel([ids[5]], reason=Reason.OPERATOR)
    lifecycle.settle([failed(claim_run) for claim_run in _[:1]])  # stopped inside its window: excluded
    lifecycle.settle([failed(dead, reason="rejected")])
    shift_clock("61 seconds")
    lifecycle.settle([confirmed(late)])
    lifecycle.settle([failed(_[1])])  # cancelled after its window: a miss
    child = lifecycle.replay(dead.id, by="me")
    assert child is not None
    [replayed] = claim([child])
    lifecycle.settle([confirmed(replayed)])
    fold_all()
    counts = _rollup("ready", "in_window", "excluded", "confirmed", "dead", "cancelled", "replayed", "accepted")
    assert counts == {
        "ready": 6, "in_window": 1, "excluded": 1, "confirmed": 3, "dead": 1, "cancelled": 2, "replayed": 1,
        "accepted": 6,
    }  # fmt: skip
    assert get(quiet.id).state == S.PROCESSING
    assert state_counts() == true_counts() == {"processing": 1}
    assert buckets("dead") == {3: 1}


def test_folding_in_pieces_is_folding_at_once() -> None:
    """Scenario 19: whatever is taken first, the sums are the same in every grain."""
    runs = claim(accept(20))
    for run in runs:
        lifecycle.settle([confirmed(run, seconds=run.fence / 100)])
    while lifecycle.fold(limit=3):
        pass
    for grain in ("minute", "hour", "day", "total"):
        assert _rollup("accepted", "runs", "confirmed", "ready", "in_window", grain=grain) == dict.fromkeys(
            ("accepted", "runs", "confirmed", "ready", "in_window"), 20
        )
        assert [sum(buckets(measure, grain=grain).values()) for measure in ("lag", "run", "wait", "await")] == [
            20,
            20,
            20,
            0,
        ]
    assert lifecycle.fold() == 0


def test_a_fold_is_seen_by_the_board() -> None:
    """DESIGN 8: the version rises when something was folded or somebody acted, and only then."""

    def version() -> int:
        return int(sql("SELECT n FROM queues_boardversion WHERE id = 1")[0][0])

    accept()
    before = version()
    fold_all()
    assert version() == before + 1
    fold_all()
    assert version() == before + 1
    lifecycle.touch_board()
    assert version() == before + 2


_MOVES = (
    "accept",
    "claim",
    "confirm",
    "fail",
    "bury",
    "release",
    "lose",
    "expire",
    "cancel",
    "replay",
    "close",
    "beat",
    "fold",
)


class Walk:
    """A random walk of jobs through their lives, a few at a time."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.runs: list[Run] = []

    def some(self, states: tuple[JobState, ...] = tuple(JobState)) -> list[UUID]:
        """Pick ids, mostly of jobs in these states."""
        found = [i for (i,) in sql("SELECT id FROM queues_job WHERE state = ANY(%s) ORDER BY id", list(states))]
        return self.draw.sample(found, min(len(found), self.draw.randint(1, 3)))

    def ends(self) -> list[Run]:
        """Pick runs, also of long ago."""
        return self.draw.sample(self.runs, min(len(self.runs), self.draw.randint(1, 3)))

    def step(self, move: str) -> None:
        """Make one move."""
        getattr(self, move)()

    def accept(self) -> None:
        accept(self.draw.randint(1, 4))

    def claim(self) -> None:
        sql("UPDATE queues_job SET due_at = jobs_now() WHERE state IN ('accepted', 'retrying')")
        self.runs += lifecycle.claim(self.some(OPEN), worker=WORKER)

    def confirm(self) -> None:
        lifecycle.settle([confirmed(run, seconds=self.draw.random()) for run in self.ends()])

    def fail(self) -> None:
        lifecycle.settle([failed(run, seconds=self.draw.random()) for run in self.ends()])

    def bury(self) -> None:
        lifecycle.settle([failed(run, reason="permanent_error") for run in self.ends()])

    def release(self) -> None:
        lifecycle.settle([released(run) for run in self.ends()])

    def lose(self) -> None:
        ids = self.some((S.PROCESSING,))
        lose_lease(*ids)
        lifecycle.rescue(ids)

    def expire(self) -> None:
        for job_id in self.some((S.ACCEPTED, S.RETRYING)):
            set_columns(job_id, raw_expires_at="jobs_now()")
        lifecycle.expire(lifecycle.stale(limit=10))

    def cancel(self) -> None:
        lifecycle.cancel(self.some(), reason=Reason.OPERATOR)

    def replay(self) -> None:
        for job_id in self.some(REPLAYABLE):
            lifecycle.replay(job_id, by="me")

    def close(self) -> None:
        lifecycle.close_dead_letters(self.some((S.DEAD,)), resolution="ignored", by="me")

    def beat(self) -> None:
        lifecycle.heartbeat([(run.id, run.fence, 15.0) for run in self.ends()])

    def fold(self) -> None:
        lifecycle.fold(limit=self.draw.randint(1, 9))


def _truth() -> dict[str, int]:
    [row] = sql(
        """
        SELECT count(*) FILTER (WHERE replay_of IS NULL), count(*) FILTER (WHERE replay_of IS NOT NULL),
          count(*) FILTER (WHERE state = 'confirmed'), count(*) FILTER (WHERE state = 'dead'),
          count(*) FILTER (WHERE state = 'expired'), count(*) FILTER (WHERE state = 'cancelled'),
          count(*) FILTER (WHERE replay_of IS NULL),
          count(*) FILTER (WHERE replay_of IS NULL AND state = 'confirmed'),
          count(*) FILTER (WHERE replay_of IS NULL AND state = 'cancelled'),
          coalesce(sum(fence), 0)::bigint
        FROM queues_job
        """
    )
    names = (
        "accepted",
        "replayed",
        "confirmed",
        "dead",
        "expired",
        "cancelled",
        "ready",
        "in_window",
        "excluded",
        "runs",
    )
    return dict(zip(names, row, strict=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(_MOVES), min_size=5, max_size=40), st.randoms(use_true_random=False))
def test_counts_are_the_truth_after_any_walk(moves: list[str], draw: random.Random) -> None:
    """I-35, I-10, I-13: after any history, folded in any pieces, counts equal SQL truth and no row is in limbo."""
    with transaction.atomic():
        _walk_and_check(moves, draw)
        transaction.set_rollback(True)


def _walk_and_check(moves: list[str], draw: random.Random) -> None:
    walk = Walk(draw)
    for move in ["accept", "claim", *moves]:
        walk.step(move)
    while lifecycle.fold(limit=7):
        pass
    assert state_counts() == true_counts()
    for grain in ("minute", "hour", "day"):
        wanted = _truth()
        assert _rollup(*wanted, grain=grain) == wanted
    assert sql("SELECT count(*) FROM queues_job WHERE attempt > begun OR attempt < 0 OR attempt > attempt_limit") == [
        (0,)
    ]
    assert sum(buckets("lag").values()) == _truth()["confirmed"]
