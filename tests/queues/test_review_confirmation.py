"""What a review proved of checks, callbacks and steps. A letter with a number names the finding."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any, Final
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import DataError, IntegrityError, connection
from django.db.migrations.loader import MigrationLoader

from queues import broker, confirmation, contracts, handlers, lifecycle
from queues.confirmation import Applied, Evidence, Outcome
from queues.handlers import Confirmed, JobContext, Rejected, RetryLater
from queues.lifecycle import Edit, End, Run, Verdict
from queues.lifecycle.check import CLAIM_SECONDS
from queues.lifecycle.sweep import CHECKS_LOST_MOST
from queues.models import JobType
from queues.runtime import heartbeat, leases
from queues.runtime.chunk import CHECK_HARD_SECONDS, Chunk, Runner, _without_data
from queues.runtime.context import context_of
from queues.runtime.execute import Ended, execute
from queues.runtime.heartbeat import Heart
from queues.runtime.leases import LeaseTable
from queues.runtime.steps import RunSteps
from queues.scheduler import confirmations
from queues.states import JobState
from tests.factories import (
    TYPE,
    accept,
    claim,
    evidence,
    failed,
    get,
    lose_lease,
    make_job,
    make_type,
    released,
    set_columns,
    sql,
)

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


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Handler and check of the type; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    world = World()
    handlers.handler(TYPE)(world.handle)
    handlers.check(TYPE)(world.check)
    yield world
    handlers._handlers.pop(TYPE)
    handlers._checks.pop(TYPE, None)


@pytest.fixture
def world(db: None, made: World) -> World:
    """The same in a transaction that is rolled back."""
    return made


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


# A1, A4: the slots that checks take.


class Clock:
    """CLOCK_MONOTONIC, as far as a module knows."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Stand in for the module `time`."""
        return self.now


class Sent:
    """A broker that remembers."""

    def __init__(self) -> None:
        self.ids: list[UUID] = []

    def publish(self, hints: Any, *, task: str) -> bool:
        """Take hints of checks."""
        assert task == broker.CHECK_TASK
        self.ids += [job_id for _, [job_id] in hints]
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the service goes by."""
    made = Clock()
    monkeypatch.setattr(confirmations, "time", made)
    return made


@pytest.fixture
def sent(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What the service published; workers with eight slots, and only one scheduler."""
    made = Sent()
    monkeypatch.setattr(broker, "publish", made.publish)
    monkeypatch.setattr("queues.workers.slots_by_queue", lambda: {"tier2": 8})
    monkeypatch.setattr("queues.workers.is_first_scheduler", lambda: True)
    return made


def due_checks(n: int) -> list[UUID]:
    """Make jobs whose check is due."""
    past, later = "jobs_now() - interval '1 s'", "jobs_now() + interval '1 h'"
    return [
        make_job(S.AWAITING_CONFIRMATION, fence=1, attempt=1, polled=True, raw_due_at=past, raw_confirm_by=later).id
        for _ in range(n)
    ]


def test_checks_that_hang_take_no_more_than_their_share(world: World, sent: Sent, clock: Clock) -> None:
    """A1: a check may take longer than a hint is waited for; while it is under way it keeps its place."""
    make_type(**ASK)
    due_checks(20)
    service = confirmations.Checks()
    for _ in range(4):
        service.run_once()
        assert len(set(sent.ids)) == 2
        # The first time they are claimed, and then they go on.
        lifecycle.claim_checks(sent.ids)
        clock.now += confirmations.HINT_SECONDS + 1


def test_a_hint_that_nobody_took_is_sent_again(world: World, sent: Sent, clock: Clock) -> None:
    """A1, I-21: a message that got lost keeps neither its check nor the place of it."""
    make_type(**ASK)
    [job_id] = due_checks(1)
    service = confirmations.Checks()
    service.run_once()
    service.run_once()
    assert sent.ids == [job_id]
    clock.now += confirmations.HINT_SECONDS + 1
    service.run_once()
    assert sent.ids == [job_id] * 2


# A2, B12: claims of checks, and answers.


def test_claims_without_an_answer_are_no_failed_answers(world: World) -> None:
    """A2: each kind is counted by itself, and an answer, also a failed one, ends the row of claims without any."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    world.answer = ConnectionError("closed")
    for failures in range(1, 4):
        for lost in range(1, 2 + CHECKS_LOST_MOST):
            set_columns(job_id, raw_due_at="jobs_now()")
            assert len(lifecycle.claim_checks([job_id])) == 1
            assert (get(job_id).checks, get(job_id).check_failures) == (lost, failures - 1)
        poll(job_id)
        assert (get(job_id).checks, get(job_id).check_failures) == (0, failures)
        assert get(job_id).state == S.AWAITING_CONFIRMATION
    world.answer = Confirmed("it is there")
    poll(job_id)
    assert get(job_id).state == S.CONFIRMED


def test_a_claim_of_a_check_outlives_the_check() -> None:
    """B12: nothing renews it, and the hard limit of the check is no secret."""
    assert CLAIM_SECONDS > CHECK_HARD_SECONDS


# A3: who is polled.


def test_the_wait_of_another_attempt_is_polled_as_well(world: World) -> None:
    """A3: after `on_unconfirmed: retry` the next wait is polled as the first one was, and nothing before that is."""
    make_type(**ASK | {"on_unconfirmed": "retry"})
    [job_id] = accept()
    run_once(job_id)
    set_columns(job_id, raw_confirm_by="jobs_now() - interval '1 s'")
    poll(job_id)
    job = get(job_id)
    assert (job.state, job.polled, job.checks, job.check_failures) == (S.RETRYING, False, 0, 0)
    run_once(job_id)
    job = get(job_id)
    assert (job.state, job.polled, len(world.asked), len(world.ran)) == (S.AWAITING_CONFIRMATION, True, 2, 2)
    past = "jobs_now() - interval '10 min'"
    set_columns(job_id, raw_due_at=past, raw_confirm_by=past)
    assert (lifecycle.overdue(limit=5), lifecycle.give_up_waiting([job_id])) == ([], {})
    world.answer = Confirmed("there")
    poll(job_id)
    assert get(job_id).state == S.CONFIRMED


def test_an_end_without_its_data_is_polled_all_the_same() -> None:
    """A3: what PostgreSQL refused of a result must not turn the wait into one that the clock ends."""
    end = End(
        id=UUID(int=1), fence=1, verdict=Verdict.AWAITING, result={"n": "\x00"}, reference="r", confirm_in=60.0,
        act_in=10.0, polled=True,
    )  # fmt: skip
    kept = _without_data(end, ValueError("bad"))
    assert (kept.polled, kept.reference, kept.confirm_in, kept.act_in) == (True, "r", 60.0, 10.0)


def test_what_waits_for_a_callback_only_is_ended_by_the_clock(world: World) -> None:
    """A3: nobody is asked there, so nobody's last word is waited for."""
    make_type(**CALL)
    [job_id] = accept()
    run_once(job_id)
    past = "jobs_now() - interval '1 s'"
    set_columns(job_id, raw_due_at=past, raw_confirm_by=past)
    assert lifecycle.claim_checks([job_id]) == []
    confirmations.end_waits()
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, "unconfirmed")


# A6: whose evidence it is.


def test_evidence_does_not_follow_a_replay_under_another_key(world: World) -> None:
    """A6: another key is another action; the proof of the first one stays late evidence of the first one."""
    make_type(**CALL)
    [job_id] = accept(dedupe_key="order-1")
    [run] = claim([job_id])
    lifecycle.settle([failed(run, reason="permanent_error")])
    digest = get(job_id).request_hash
    other = lifecycle.replay(
        job_id, by="ada", edit=Edit(payload=None, request_hash=bytes(digest).hex(), dedupe_key="order-2")
    )
    assert other is not None
    assert get(job_id).replayed_by == other
    outcome = confirmation.by_token(job_id, Evidence(outcome="confirmed", ref="r", run=1))
    assert (outcome.job_id, outcome.applied, outcome.state) == (job_id, Applied.LATE, S.DEAD)
    assert get(other).state == S.ACCEPTED
    assert get(job_id).late_evidence is not None


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


# B8, B9: rejections, and callbacks that cannot be applied.


@pytest.mark.parametrize("retryable", [False, True])
@pytest.mark.parametrize("run", [1, None])
def test_a_rejection_of_a_job_that_was_given_back_changes_nothing(world: World, retryable: bool, run: int) -> None:
    """B8, I-26: no body ran that it could be about; not an error either."""
    make_type(**CALL)
    [job_id] = accept()
    [claimed] = claim([job_id])
    lifecycle.settle([released(claimed)])
    outcome = confirmation.by_token(job_id, Evidence(outcome="rejected", retryable=retryable, run=run))
    assert (outcome.applied, outcome.state) == (Applied.SUPERSEDED, S.ACCEPTED)
    job = get(job_id)
    assert (job.state, job.rejection) == (S.ACCEPTED, None)
    assert job.due_at is not None


@pytest.mark.parametrize("error", [DataError, IntegrityError])
def test_a_callback_that_cannot_be_applied_keeps_no_other_waiting(
    world: World, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8, I-13: the others are applied; the provider of the bad one is told that it is kept, not a server error."""
    make_type(**CALL)
    [bad, good] = accept(2)
    runs = {run.id: run for run in claim([bad, good])}
    refuse(bad, error, monkeypatch)
    assert provider("a", job_id=bad).applied is Applied.PENDING
    assert provider("b", ref="R").applied is Applied.PENDING
    lifecycle.settle([awaiting(runs[good], "R")])
    assert confirmation.apply_pending() == 1
    assert get(good).state == S.CONFIRMED
    assert get(bad).state == S.PROCESSING


def refuse(job_id: UUID, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the database refuse whatever is written about a job."""
    real = lifecycle.confirm

    def confirm(proofs: Any) -> Any:
        if proofs[0].id == job_id:
            raise error("refused")
        return real(proofs)

    monkeypatch.setattr(lifecycle, "confirm", confirm)


def test_a_rejection_without_a_run_does_not_hit_the_next_run(world: World) -> None:
    """B9, I-27, K-07: run 1 got "A" and died before it could say so; the provider rejects "A" while run 2 goes on."""
    make_type(**CALL)
    [job_id] = accept()
    begun_before(job_id)
    [two] = claim([job_id])
    assert provider("w", "rejected", job_id=job_id, ref="A").applied is Applied.SUPERSEDED
    lifecycle.settle([awaiting(two, "B")])
    assert provider("x", "rejected", job_id=job_id).applied is Applied.SUPERSEDED
    assert get(job_id).state == S.AWAITING_CONFIRMATION
    assert provider("y", "rejected", job_id=job_id, ref="B").applied is Applied.REJECTED


@pytest.mark.parametrize("ends", ["running", "awaiting", "failed", "lost"])
def test_a_rejection_without_a_run_is_about_the_only_one(world: World, ends: str) -> None:
    """B9: only one body began, so it cannot be about another one."""
    make_type(**CALL)
    [job_id] = accept()
    [run] = claim([job_id])
    if ends == "lost":
        lose_lease(job_id)
        lifecycle.rescue([job_id])
    elif ends != "running":
        lifecycle.settle([awaiting(run) if ends == "awaiting" else failed(run)])
    applied = provider("w", "rejected", job_id=job_id, ref="unknown").applied
    assert applied is (Applied.KEPT if ends == "running" else Applied.REJECTED)
    if ends == "running":
        lifecycle.settle([awaiting(run)])
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, "rejected")


# B10: the reference of a run that came too late.


@pytest.mark.parametrize("when", ["before its successor", "while it runs", "after it"])
def test_the_reference_of_a_superseded_run_proves_its_job(world: World, when: str) -> None:
    """B10, I-26: its end came too late, and what it handed over is on its way all the same."""
    make_type(**CALL)
    [job_id] = accept()
    [one] = claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    end = awaiting(one, "A")
    if when == "before its successor":
        assert lifecycle.settle([end]) == {}
    [two] = claim([job_id])
    if when == "while it runs":
        assert lifecycle.settle([end]) == {}
    lifecycle.settle([awaiting(two, "B")])
    if when == "after it":
        assert lifecycle.settle([end]) == {}
    assert get(job_id).reference == "B"
    assert provider("r", "rejected", ref="A").applied is Applied.SUPERSEDED
    assert provider("w", ref="A").applied is Applied.CONFIRMED
    assert (evidence(job_id)["ref"], evidence(job_id)["run"]) == ("A", 1)


def test_the_early_callback_of_a_superseded_run_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """B10, scenario 3: the worker looks for callbacks of all that it wrote a reference of, not of its ends only."""
    make_type(**CALL)
    [job_id] = accept()
    [one] = claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])
    assert provider("w", ref="A").applied is Applied.PENDING
    monkeypatch.setattr(Runner, "_finisher", lambda self: None)
    runner = Runner(LeaseTable(), node="test")
    chunk = Chunk([one], runner._slot(), claimed_at=leases.now())
    runner._write([awaiting(one, "A")], chunk)
    assert get(job_id).state == S.CONFIRMED


# B11: steps whose result is lost, or was another's.


@pytest.fixture
def committed(transactional_db: None, made: World) -> World:
    """Handler and check with real commits: steps are refused inside a transaction."""
    make_type(backoff="fixed", backoff_base_seconds=0.0, hard_limit_seconds=90)
    return made


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


# B13: what is looked at again.


def cross(ref: str, *, callback_age: int, reference_age: int) -> UUID:
    """Let a job and its callback miss each other, so many seconds ago."""
    [run] = claim(accept())
    provider(f"msg {ref}", ref=ref)
    lifecycle.settle([awaiting(run, ref)])
    sql("UPDATE queues_callback SET received_at = jobs_now() - make_interval(secs => %s) WHERE ref = %s",
        callback_age, ref)  # fmt: skip
    sql("UPDATE queues_jobreference SET at = jobs_now() - make_interval(secs => %s) WHERE ref = %s",
        reference_age, ref)  # fmt: skip
    return run.id


@pytest.mark.parametrize(("callback_age", "reference_age"), [(5, 3000), (3000, 5), (5, 5)])
def test_what_crossed_is_found_by_whichever_side_is_new(world: World, callback_age: int, reference_age: int) -> None:
    """B13, scenario 3: the newer side is what is looked at, the older one may be of any age."""
    make_type(**CALL)
    job_id = cross("A", callback_age=callback_age, reference_age=reference_age)
    service = confirmations.Matching(caught_up=True, looked_at=time.monotonic())
    assert service.run_once() is False
    assert get(job_id).state == S.CONFIRMED


def test_the_first_look_goes_back_as_far_as_callbacks_are_kept(world: World) -> None:
    """B13: no scheduler ran for an hour; afterwards only what is new is looked at."""
    make_type(**CALL)
    first = cross("A", callback_age=3000, reference_age=3000)
    service = confirmations.Matching()
    service.run_once()
    assert get(first).state == S.CONFIRMED
    assert service.caught_up
    second = cross("B", callback_age=3000, reference_age=3000)
    service.run_once()
    assert get(second).state == S.AWAITING_CONFIRMATION, "it had been looked at an hour ago"


def test_who_did_not_look_for_a_while_looks_further_back(world: World) -> None:
    """B13: the database was away for longer than the window, and what came before it is older than that."""
    make_type(**CALL)
    job_id = cross("A", callback_age=125, reference_age=125)
    late = time.monotonic() - confirmations.LOOK_SECONDS / 2 - 1
    confirmations.Matching(caught_up=True, looked_at=late).run_once()
    assert get(job_id).state == S.CONFIRMED


def test_a_bad_callback_does_not_end_the_catching_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """B13, B8: after an outage a batch of which one could not be applied is followed by the next batch."""
    make_type(**CALL)
    ids = [cross(f"ref {n}", callback_age=3000, reference_age=3000) for n in range(3)]
    monkeypatch.setattr(confirmations, "BATCH", 2)
    refuse(ids[0], DataError, monkeypatch)
    service = confirmations.Matching()
    for _ in range(5):
        service.run_once()
    assert [get(job_id).state for job_id in ids[1:]] == [S.CONFIRMED] * 2


def test_looking_again_does_not_read_the_inbox(world: World) -> None:
    """B13: callbacks that are nobody's and references of the last day are many; each second they must not cost."""
    make_type(**CALL)
    sql(
        "INSERT INTO queues_callback (type, webhook_id, ref, outcome, retryable, detail, received_at, keep_until,"
        " applied) SELECT %s, 'w' || n, 'theirs ' || n, 'confirmed', false, '', jobs_now() - interval '1 h',"
        " jobs_now() + interval '1 day', '' FROM generate_series(1, 20000) AS n", TYPE,
    )  # fmt: skip
    sql(
        "INSERT INTO queues_jobreference (type, ref, job_id, fence, at) SELECT %s, 'ours ' || n, gen_random_uuid(), 1,"
        " jobs_now() - interval '1 h' FROM generate_series(1, 20000) AS n", TYPE,
    )  # fmt: skip
    sql("ANALYZE queues_callback, queues_jobreference")
    with connection.cursor() as cursor:
        cursor.execute(
            "EXPLAIN (COSTS OFF) " + confirmation._MATCHED,
            {"within": confirmations.LOOK_SECONDS, "limit": 500, "after": 0},
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Seq Scan" not in plan, plan
    assert "callback_recent" in plan and "reference_recent" in plan, plan


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
