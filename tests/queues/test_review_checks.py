"""What a review proved of checks: slots, claims, who is polled. A letter with a number names the finding."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from queues import broker, lifecycle
from queues.handlers import Confirmed
from queues.lifecycle import End, Verdict
from queues.lifecycle.check import CLAIM_SECONDS
from queues.lifecycle.sweep import CHECKS_LOST_MOST
from queues.runtime.chunk import CHECK_HARD_SECONDS, _without_data
from queues.scheduler import confirmations
from tests.factories import accept, get, make_job, make_type, set_columns
from tests.queues.reviewed import ASK, CALL, Clock, S, World, poll, run_once

# A1, A4: the slots that checks take.


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
