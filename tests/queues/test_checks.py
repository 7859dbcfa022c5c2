"""Checks: asked before a run that may repeat an effect, and while a proof is awaited."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

import pytest

from queues import broker, confirmation, handlers, lifecycle
from queues.handlers import Confirmed, JobContext, PermanentError, Rejected, RetryLater
from queues.lifecycle import End, Verdict
from queues.lifecycle.sweep import CHECKS_LOST_MOST
from queues.models import JobType
from queues.runtime.chunk import Runner
from queues.runtime.leases import LeaseTable
from queues.scheduler import confirmations
from queues.states import JobState
from tests.factories import TYPE, accept, claim, get, lose_lease, make_type, set_columns, sql
from tests.queues.reviewed import poll, run_once

pytestmark = pytest.mark.django_db
S = JobState
Shift = Callable[[str], None]
ASK: Final[dict[str, Any]] = {
    "success": "check",
    "check_every_seconds": 10,
    "confirm_within_seconds": 60,
    "backoff": "fixed",
    "backoff_base_seconds": 20.0,
    "max_attempts": 2,
    "max_age_seconds": 3600,
}


class World:
    """What a check finds, and how often it and the handler were asked."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.outcome: Any = Confirmed("r-1")
        self.asked: list[JobContext] = []
        self.ran: list[JobContext] = []

    def check(self, job: JobContext) -> Any:
        """Answer as the test says."""
        self.asked.append(job)
        if isinstance(self.answer, BaseException) and not isinstance(self.answer, Rejected):
            raise self.answer
        return self.answer

    def handle(self, job: JobContext) -> Any:
        """Return or raise as the test says."""
        self.ran.append(job)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A type whose handler and check are the test's."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    made = World()
    handlers.handler(TYPE)(made.handle)
    handlers.check(TYPE)(made.check)
    yield made
    handlers._handlers.pop(TYPE)
    handlers._checks.pop(TYPE, None)


# While a proof is awaited.


def test_a_check_confirms_what_the_handler_only_began(world: World) -> None:
    """DESIGN 5: under `check` a returned Confirmed only keeps the reference; the world's word confirms."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    job = get(job_id)
    assert (job.state, job.reference, job.evidence) == (S.AWAITING_CONFIRMATION, "r-1", None)
    assert job.due_at is not None and job.confirm_by is not None and job.finished_at is not None
    assert (job.due_at - job.finished_at).total_seconds() == 10
    assert (job.confirm_by - job.finished_at).total_seconds() == 60
    poll(job_id)
    assert (get(job_id).state, world.asked[-1].reference) == (S.AWAITING_CONFIRMATION, "r-1")
    world.answer = Confirmed("seen", result={"books": 7})
    poll(job_id)
    job = get(job_id)
    assert (job.state, job.result, job.attempt, len(world.ran)) == (S.CONFIRMED, {"books": 7}, 1, 1)
    assert job.evidence is not None and (job.evidence["kind"], job.evidence["ref"]) == ("check", "seen")


@pytest.mark.parametrize("how", ["returned", "raised"])
def test_a_check_that_says_rejected_ends_the_job(world: World, how: str) -> None:
    """Dead, `rejected`, with the partner's words."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    if how == "returned":
        world.answer = Rejected("account closed")
    else:
        handlers._checks.pop(TYPE)

        def refuse(job: JobContext) -> None:
            raise Rejected("account closed")

        handlers.check(TYPE)(refuse)
    poll(job_id)
    job = get(job_id)
    assert (job.state, job.reason, job.failures[-1]["message"]) == (S.DEAD, "rejected", "account closed")


@pytest.mark.parametrize(("policy", "state"), [("dead", S.DEAD), ("retry", S.RETRYING)])
def test_the_check_at_the_deadline_has_the_last_word(world: World, policy: str, state: JobState) -> None:
    """Never unconfirmed without having been asked: not after an outage, nor when the deadline comes first."""
    make_type(**ASK | {"on_unconfirmed": policy, "check_every_seconds": 600})
    [unproven, proven] = accept(2)
    run_once(unproven)
    run_once(proven)
    assert get(unproven).due_at == get(unproven).confirm_by
    for job_id in (unproven, proven):
        set_columns(job_id, raw_due_at="jobs_now() - interval '1 h'", raw_confirm_by="jobs_now() - interval '1 h'")
    assert confirmations.end_waits() is False
    assert get(unproven).state == S.AWAITING_CONFIRMATION, "the clock alone ends nothing that a check can prove"
    poll(unproven)
    job = get(unproven)
    assert (job.state, job.reason) == (state, "unconfirmed" if policy == "dead" else None)
    assert job.failures[-1]["error_class"] == "Unconfirmed"
    world.answer = Confirmed("there it is")
    poll(proven)
    assert get(proven).state == S.CONFIRMED


def test_a_check_that_fails_is_given_up_like_an_attempt_but_not_early(world: World) -> None:
    """Scenario 16: an outage of the partner makes no dead letters before the proof had its time."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    world.answer = ConnectionError("the books are closed")
    for failures in range(1, 9):
        poll(job_id)
        job = get(job_id)
        assert (job.state, job.checks, job.check_failures) == (S.AWAITING_CONFIRMATION, 0, failures)
    told = [failure["error_class"] for failure in get(job_id).failures]
    assert told == ["ConnectionError"], "a row of failing checks does not push the other failures out"
    world.answer = None
    poll(job_id)
    assert get(job_id).check_failures == 0, "an answer ends the row"
    world.answer = ConnectionError("the books are closed")
    set_columns(job_id, raw_confirm_by="jobs_now() - interval '1 s'")
    poll(job_id)
    assert get(job_id).state == S.AWAITING_CONFIRMATION
    poll(job_id)
    job = get(job_id)
    assert (job.state, job.reason, len(world.ran)) == (S.DEAD, "unconfirmed", 1)


def test_checked_again_until_max_age(world: World, shift_clock: Shift) -> None:
    """DESIGN 5: `check_again` stops there."""
    make_type(**ASK | {"on_unconfirmed": "check_again"})
    [job_id] = accept()
    run_once(job_id)
    assert get(job_id).confirm_by == get(job_id).expires_at
    shift_clock("3000 s")
    for _ in range(5):
        poll(job_id)
        assert get(job_id).state == S.AWAITING_CONFIRMATION
    shift_clock("3601 s")
    assert lifecycle.claim_checks([job_id]) == []
    lifecycle.expire(lifecycle.stale(limit=10))
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, "unconfirmed")


def test_a_job_is_asked_before_its_max_age(world: World) -> None:
    """The first check would come after the end: it comes ten seconds before, and then every second."""
    make_type(**ASK | {"check_every_seconds": 600, "confirm_within_seconds": 600})
    [job_id] = accept(max_age=300.0)
    run_once(job_id)
    left = "SELECT extract(epoch FROM expires_at - due_at)::float8 FROM queues_job"
    assert sql(left) == [(10.0,)]
    set_columns(job_id, raw_expires_at="jobs_clock() + interval '5 s'")
    poll(job_id)
    assert 3.5 < sql(left)[0][0] < 4.5


def test_a_check_that_kills_its_workers_is_given_up(world: World) -> None:
    """Scenario 16: each claim counts, and comes later than the one before, and longer than a check may take."""
    make_type(**ASK | {"lease_seconds": 5})
    [job_id] = accept()
    run_once(job_id)
    waits = []
    for _ in range(2 + CHECKS_LOST_MOST):
        set_columns(job_id, raw_due_at="jobs_now()")
        assert len(lifecycle.claim_checks([job_id])) == 1
        waits.append(sql("SELECT extract(epoch FROM due_at - jobs_clock())::float8 FROM queues_job")[0][0])
        assert lifecycle.claim_checks([job_id]) == [], "a claimed check is nobody else's"
    set_columns(job_id, raw_due_at="jobs_now()")
    assert lifecycle.claim_checks([job_id]) == []
    lifecycle.give_up_waiting(lifecycle.overdue(limit=10))
    assert (get(job_id).state, get(job_id).reason) == (S.DEAD, "unconfirmed")
    assert waits[0] > 60 and waits[0] < waits[1] < waits[2] < waits[3]


def test_the_answer_of_an_older_claim_is_dropped(world: World) -> None:
    """A check raises no fence; its `due_at` names the claim."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    set_columns(job_id, raw_due_at="jobs_now()")
    [slow] = lifecycle.claim_checks([job_id])
    set_columns(job_id, raw_due_at="jobs_now()")
    [other] = lifecycle.claim_checks([job_id])
    say: dict[str, Any] = {"outcome": "confirmed", "evidence": {"kind": "check", "ref": "x", "late": False}}
    assert lifecycle.finish_checks([lifecycle.CheckEnd(id=job_id, fence=1, due_at=slow.due_at, **say)]) == {}
    end = lifecycle.CheckEnd(id=job_id, fence=1, due_at=other.due_at, **say)
    assert lifecycle.finish_checks([end]) == {(job_id, 1): S.CONFIRMED}


def test_a_callback_beats_a_check_that_is_under_way(world: World) -> None:
    """The evidence is there; what the check says later is dropped."""
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    set_columns(job_id, raw_due_at="jobs_now()")
    [due] = lifecycle.claim_checks([job_id])
    confirmation.by_token(job_id, confirmation.Evidence(outcome="confirmed", ref="cb", run=1))
    end = lifecycle.CheckEnd(id=job_id, fence=1, due_at=due.due_at, outcome="rejected")
    assert lifecycle.finish_checks([end]) == {}
    assert get(job_id).state == S.CONFIRMED


def test_a_type_without_a_check_says_so(world: World) -> None:
    """No limbo: it is asked again, and given up at last."""
    handlers._checks.pop(TYPE)
    make_type(**ASK)
    [job_id] = accept()
    run_once(job_id)
    poll(job_id)
    assert get(job_id).failures[-1]["error_class"] == "NoCheck"


def test_reference_without_one_is_checked_again_where_the_contract_says_so(world: World) -> None:
    """DESIGN 5: a run that ended without its evidence is unconfirmed, not failed."""
    make_type(**ASK | {"success": "reference", "on_unconfirmed": "check_again"})
    world.outcome = None
    [job_id] = accept()
    run_once(job_id)
    assert get(job_id).state == S.AWAITING_CONFIRMATION
    world.answer = Confirmed("found after all")
    poll(job_id)
    assert (get(job_id).state, len(world.ran)) == (S.CONFIRMED, 1)


def test_past_its_deadline_a_check_is_asked_less_often(world: World, shift_clock: Shift) -> None:
    """check_again for a week is no request every ten seconds for a week."""
    make_type(**ASK | {"on_unconfirmed": "check_again", "max_age_seconds": 86400})
    [job_id] = accept()
    run_once(job_id)
    shift_clock("10000 s")
    poll(job_id)
    job = get(job_id)
    left = sql("SELECT extract(epoch FROM due_at - jobs_now()) FROM queues_job")[0][0]
    assert job.state == S.AWAITING_CONFIRMATION and 900 < left < 1100


# Due checks are published.


class Sent:
    """A broker that remembers, workers with eight slots, and only one scheduler."""

    def __init__(self) -> None:
        self.hints: list[tuple[str, UUID]] = []
        self.slots = {"tier2": 8}

    def publish(self, hints: Any, *, task: str) -> bool:
        """Take hints of checks."""
        assert task == "queues.check"
        self.hints += [(queue, job_id) for queue, [job_id] in hints]
        return True


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What the service published."""
    made = Sent()
    monkeypatch.setattr(broker, "publish", made.publish)
    monkeypatch.setattr("queues.workers.slots_by_queue", lambda: made.slots)
    monkeypatch.setattr("queues.workers.is_first_scheduler", lambda: True)
    return made


def due_checks(n: int, *, kind: str = TYPE) -> list[UUID]:
    """Make jobs whose check is due."""
    ids = accept(n, kind=kind)
    past = "jobs_now() - interval '1 s'"
    for job_id in ids:
        claim([job_id])
        lifecycle.settle([End(id=job_id, fence=1, verdict=Verdict.AWAITING, confirm_in=60.0, act_in=10.0, polled=True)])
        set_columns(job_id, raw_due_at=past)
    return ids


def test_due_checks_are_published_once(world: World, sent: Sent) -> None:
    """A hint of its own kind; none before it is due, and not again while it is out, unless it is due anew."""
    make_type(**ASK)
    [job_id] = accept()
    service = confirmations.Checks()
    run_once(job_id)
    assert service.run_once() is False and sent.hints == []
    set_columns(job_id, raw_due_at="jobs_now()")
    service.run_once()
    service.run_once()
    assert sent.hints == [("tier2", job_id)]
    poll(job_id)
    set_columns(job_id, raw_due_at="jobs_now()")
    service.run_once()
    assert len(sent.hints) == 2


def test_checks_never_take_more_than_their_share_of_the_slots(world: World, sent: Sent) -> None:
    """Work goes first: a quarter of a queue's slots may ask checks, however many are due, and none waits unasked."""
    make_type(**ASK)
    ids = due_checks(20)
    service = confirmations.Checks()
    for _ in range(5):
        service.run_once()
    assert len(sent.hints) == 2
    # Claimed and not answered: they are still under way.
    lifecycle.claim_checks([job_id for _, job_id in sent.hints])
    service.run_once()
    assert len(sent.hints) == 2
    for _, job_id in sent.hints:
        sql("UPDATE queues_job SET checks = 0 WHERE id = %s", job_id)
    while len(sent.hints) < 20:
        before = len(sent.hints)
        service.run_once()
        assert before < len(sent.hints) <= before + 2
        Runner(LeaseTable(), node="test").check([job_id for _, job_id in sent.hints[before:]])
    assert {job_id for _, job_id in sent.hints} == set(ids)


def test_no_type_keeps_the_checks_of_another_one_waiting(world: World, sent: Sent) -> None:
    """A queue without a worker, and a type with many due checks, hide none of the others."""
    make_type(**ASK)
    make_type("test.lonely", **ASK | {"tier_id": 1})
    make_type("test.few", **ASK)
    due_checks(30, kind="test.lonely")
    due_checks(30)
    [few] = due_checks(1, kind="test.few")
    service = confirmations.Checks()
    service.run_once()
    assert {queue for queue, _ in sent.hints} == {"tier2"}
    assert few in {job_id for _, job_id in sent.hints}
    sent.slots = {"tier1": 1}
    service.read_at = float("-inf")
    service.run_once()
    assert [queue for queue, _ in sent.hints].count("tier1") == 1


# Before a run that may repeat an effect.


def begun_before(job_id: UUID) -> None:
    """Lose a run of a job after its body began."""
    claim([job_id])
    lose_lease(job_id)
    lifecycle.rescue([job_id])


def test_the_first_run_asks_nobody(world: World) -> None:
    """Nothing can have happened yet."""
    make_type()
    [job_id] = accept()
    run_once(job_id)
    assert (get(job_id).state, len(world.asked), len(world.ran)) == (S.CONFIRMED, 0, 1)


def test_what_is_true_already_is_confirmed_without_running(world: World) -> None:
    """DESIGN 5: check before rerun."""
    make_type(success="reference")
    [job_id] = accept()
    begun_before(job_id)
    world.answer = Confirmed("sent before")
    run_once(job_id)
    job = get(job_id)
    assert (job.state, len(world.ran)) == (S.CONFIRMED, 0)
    assert job.evidence is not None and (job.evidence["kind"], job.evidence["ref"]) == ("check", "sent before")


def test_what_did_not_happen_is_run(world: World) -> None:
    """None means: not so far."""
    make_type(success="reference")
    [job_id] = accept()
    begun_before(job_id)
    run_once(job_id)
    assert (get(job_id).state, len(world.asked), len(world.ran)) == (S.CONFIRMED, 1, 1)
    assert world.ran[0].maybe_duplicate


def test_what_was_rejected_is_not_tried_again(world: World) -> None:
    """Dead, `rejected`."""
    make_type(success="reference")
    [job_id] = accept()
    begun_before(job_id)
    world.answer = Rejected("closed")
    run_once(job_id)
    assert (get(job_id).state, get(job_id).reason, world.ran) == (S.DEAD, "rejected", [])


def test_a_check_that_cannot_answer_puts_the_attempt_off(world: World) -> None:
    """Scenario 16: not run in the dark, no attempt spent, no run counted; until it can answer, or max age."""
    make_type(success="reference", backoff="exponential", backoff_base_seconds=2.0, max_attempts=2)
    [job_id] = accept()
    begun_before(job_id)
    world.answer = TimeoutError("no answer")
    waits = []
    for failures in range(1, 5):
        run_once(job_id)
        job = get(job_id)
        assert (job.state, job.attempt, job.begun, job.check_failures) == (S.RETRYING, 0, 1, failures)
        waits.append(sql("SELECT extract(epoch FROM due_at - finished_at)::float8 FROM queues_job")[0][0])
        set_columns(job_id, raw_due_at="jobs_clock()")
    assert waits == [2, 4, 8, 16]
    assert world.ran == []
    assert [f["error_class"] for f in get(job_id).failures] == ["WorkerLost", "TimeoutError"]
    world.answer = RetryLater(33)
    run_once(job_id)
    assert sql("SELECT extract(epoch FROM due_at - finished_at)::float8 FROM queues_job") == [(33.0,)]
    set_columns(job_id, raw_due_at="jobs_clock()")
    world.answer = Confirmed("it was sent")
    run_once(job_id)
    assert (get(job_id).state, get(job_id).check_failures, world.ran) == (S.CONFIRMED, 0, [])


def test_a_replay_asks_first(world: World) -> None:
    """Scenario 15: the first attempt of a replay is the dangerous one."""
    make_type(success="reference")
    [job_id] = accept()
    world.outcome = PermanentError("after the mail went out")
    run_once(job_id)
    child = lifecycle.replay(job_id, by="ada")
    assert child is not None
    world.answer = Confirmed("it went out")
    run_once(child)
    assert (get(child).state, len(world.ran)) == (S.CONFIRMED, 1)


def test_the_contracts_address_is_asked_where_no_function_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """check_url, for teams in other languages."""
    handlers._checks.pop(TYPE)
    monkeypatch.setattr("queues.http_target.ask", lambda job, contract: Confirmed(f"asked {contract.check_url}"))
    make_type(success="reference", check_url="https://crm.example/check")
    [job_id] = accept()
    begun_before(job_id)
    run_once(job_id)
    job = get(job_id)
    assert job.evidence is not None and job.evidence["ref"] == "asked https://crm.example/check"
    assert JobType.objects.count() == 1
