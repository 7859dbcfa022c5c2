"""Signs of duplicate effects: each kind arises when it should, and only then; counts are the number of rows (DESIGN 5).

Through the calls that workers, schedulers, providers and people use; a whole stack is in tests/acceptance/test_twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import pytest

from jobsboard.testing import run_pending
from queues import edited_replay, handlers, lifecycle, outcomes
from queues.confirmation import Applied
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, RetryLater
from queues.lifecycle import End, Run, Verdict
from queues.outbound import TargetTimeout, TargetUnreachable
from queues.runtime import limits
from queues.states import Reason
from tests.factories import claim, failed, get, lose_lease, released, sql
from tests.outcomes.deeds import (
    AFTER,
    BLIND,
    CONTRADICTION,
    DAY,
    KIND,
    SECOND,
    begin,
    contract,
    details,
    end,
    give_up,
    hand_over,
    kinds,
    lose,
    one,
    reject,
    replay,
    say,
)
from tests.outcomes.sign_counts import counts_are_rows  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("counts_are_rows")


# Attempts that began without knowing how the one before had ended.


class NoAnswer(Exception):
    """A handler's own error that says that the work may have been done."""

    may_have_arrived = True


FIRST_ENDS: Final[dict[str, tuple[Callable[[], Any], bool]]] = {
    "a clean exception": (lambda: ValueError("no"), False),
    "retry later": (lambda: RetryLater(1), False),
    "a soft time limit": (lambda: handlers.SoftTimeLimitExceeded("30 s"), True),
    "no answer, may have arrived": (lambda: TargetTimeout("no answer", may_have_arrived=True), True),
    "no connection": (lambda: TargetTimeout("no connection", may_have_arrived=False), False),
    "a broken connection": (lambda: TargetUnreachable("broke", may_have_arrived=True), True),
    "a refused connection": (lambda: TargetUnreachable("refused"), False),
    "a handler's own word": (NoAnswer, True),
}


@pytest.mark.parametrize("how", FIRST_ENDS)
def test_a_retry_is_blind_when_the_first_end_is_not_known(how: str) -> None:
    error, blind = FIRST_ENDS[how]
    contract()

    @handlers.handler(KIND)
    def work(job: JobContext) -> Confirmed:
        if job.run == 1:
            raise error()
        return Confirmed("r")

    job_id = one()
    run_pending(ahead=DAY)
    assert (get(job_id).state, get(job_id).fence) == ("confirmed", 2)
    name = error().__class__.__name__
    assert details(job_id) == ([(BLIND, 2, {"error_class": name})] if blind else [])


@pytest.mark.parametrize("returned", [None, AwaitingConfirmation("a"), AwaitingConfirmation(None), Confirmed("")])
def test_a_run_without_its_evidence_that_is_tried_again_is_blind(returned: Any) -> None:
    contract(on_unconfirmed="retry")

    @handlers.handler(KIND)
    def work(job: JobContext) -> Any:
        return returned if job.run == 1 else Confirmed("a")

    job_id = one()
    run_pending(ahead=DAY)
    assert (get(job_id).state, details(job_id)) == ("confirmed", [(BLIND, 2, {"error_class": "Unconfirmed"})])


def test_a_retry_after_a_proof_that_did_not_come_is_blind() -> None:
    contract(success="callback", on_unconfirmed="retry", confirm_within_seconds=60)
    job_id = one()
    hand_over(begin(job_id), "a")
    give_up(job_id)
    assert kinds(job_id) == [], "nothing has begun again so far"
    run = begin(job_id)
    assert kinds(job_id) == []
    hand_over(run, "a")
    assert details(job_id) == [(BLIND, 2, {"error_class": "Unconfirmed"})]


def _let_the_lease_end(run: Run) -> None:
    lose_lease(run.id)
    assert lifecycle.rescue([run.id])


LOST: Final[dict[str, Callable[[Run], Any]]] = {
    "killed": lose,
    "lease ran out": _let_the_lease_end,
    "hard time limit": lambda run: lifecycle.settle(
        [limits.overrun(lifecycle.runs([(run.id, run.fence)])[0], limit=1.0, seconds=1.0, replaced=True)]
    ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_run_after_a_lost_one_is_blind_each_time(how: str) -> None:
    contract(poison_after=9, max_attempts=9)
    job_id = one()
    for _ in range(3):
        LOST[how](begin(job_id))
        sql("UPDATE queues_job SET due_at = jobs_now() WHERE id = %s", job_id)
    assert [fence for _, fence, _ in details(job_id)] == [2, 3]
    end(begin(job_id))
    name = "HardTimeLimitExceeded" if how == "hard time limit" else "WorkerLost"
    assert details(job_id) == [(BLIND, fence, {"error_class": name}) for fence in (2, 3, 4)]


def test_after_a_clean_failure_nobody_is_blind_any_more() -> None:
    """The blind run is one; what it failed with is known, so the next is none."""
    contract()
    job_id = one()
    lose(begin(job_id))
    assert lifecycle.settle([failed(begin(job_id))])
    assert lifecycle.settle([failed(begin(job_id))])
    end(begin(job_id))
    assert [fence for _, fence, _ in details(job_id)] == [2]


@pytest.mark.parametrize("before", ["lost", "clean"])
def test_a_release_in_between_neither_adds_nor_forgets(before: str) -> None:
    contract()
    job_id = one()
    run = begin(job_id)
    lose(run) if before == "lost" else lifecycle.settle([failed(run)])
    for _ in range(2):
        assert lifecycle.settle([released(begin(job_id))])
    assert kinds(job_id) == []
    end(begin(job_id))
    assert [fence for _, fence, _ in details(job_id)] == ([4] if before == "lost" else [])


@pytest.mark.parametrize("by", ["registered", "url", "success"])
def test_a_run_that_asks_first_is_not_blind(by: str) -> None:
    asks: dict[str, Any] = {"url": {"check_url": "https://shop.example/check"}, "success": {"success": "check"}}
    contract(**asks.get(by, {}))
    if by == "registered":
        handlers.check(KIND)(lambda job: None)
    job_id = one()
    lose(begin(job_id))
    lose(begin(job_id))
    end(begin(job_id))
    assert kinds(job_id) == []


def test_a_worker_that_knows_no_check_is_blind_and_one_that_knows_it_is_not() -> None:
    """During a deploy: what counts is what the worker that claims can ask."""
    contract()
    job_id = one()
    lose(begin(job_id))
    lose(claim([job_id])[0])
    handlers.check(KIND)(lambda job: None)
    end(begin(job_id))
    assert [fence for _, fence, _ in details(job_id)] == [2]


@pytest.mark.parametrize("says", ["not so far", "it is true", "it cannot say"])
def test_what_a_check_answers_leaves_no_sign(says: str) -> None:
    contract(max_attempts=9)
    ran: list[int] = []

    @handlers.handler(KIND)
    def work(job: JobContext) -> Confirmed:
        ran.append(job.run)
        if job.run == 1:
            raise TargetTimeout("no answer", may_have_arrived=True)
        return Confirmed("r")

    @handlers.check(KIND)
    def asked(job: JobContext) -> Confirmed | None:
        if says == "it cannot say" and job.run < 4:
            raise ConnectionError("away")
        return Confirmed("seen") if says == "it is true" else None

    job_id = one()
    run_pending(ahead=DAY)
    assert get(job_id).state == "confirmed"
    assert len(ran) == (1 if says == "it is true" else 2)
    assert kinds(job_id) == []


def test_a_replay_of_a_dead_letter_whose_end_is_not_known_is_blind_once() -> None:
    contract(on_worker_lost="dead")
    job_id = one()
    lose(begin(job_id))
    assert get(job_id).state == "dead" and kinds(job_id) == []
    child = replay(job_id)
    assert lifecycle.settle([failed(begin(child))])
    end(begin(child))
    assert details(job_id, child) == [(BLIND, 1, {})]
    assert kinds(child) == [BLIND]


def _no_evidence(job_id: UUID) -> None:
    assert lifecycle.settle([failed(begin(job_id), reason="no_evidence", unknown=True)])


def _cancelled_while_awaiting(job_id: UUID) -> None:
    hand_over(begin(job_id), None)
    assert lifecycle.cancel([job_id], reason=Reason.OPERATOR)


def _expired_after_a_loss(job_id: UUID) -> None:
    lose(begin(job_id))
    sql("UPDATE queues_job SET expires_at = jobs_now() WHERE id = %s", job_id)
    assert lifecycle.expire([job_id])


def _expired_unbegun(job_id: UUID) -> None:
    sql("UPDATE queues_job SET expires_at = jobs_now() WHERE id = %s", job_id)
    assert lifecycle.expire([job_id])


def _rejected(job_id: UUID) -> None:
    hand_over(begin(job_id), None)
    assert reject(job_id) is Applied.REJECTED


def _died_cleanly(job_id: UUID) -> None:
    assert lifecycle.settle([failed(begin(job_id), reason="permanent_error")])


ENDINGS: Final[dict[str, tuple[Callable[[UUID], None], bool]]] = {
    "no evidence": (_no_evidence, True),
    "cancelled while its proof was awaited": (_cancelled_while_awaiting, True),
    "expired after a loss": (_expired_after_a_loss, True),
    "expired before it began": (_expired_unbegun, False),
    "rejected": (_rejected, False),
    "died cleanly": (_died_cleanly, False),
}


@pytest.mark.parametrize("key", ["same", "other"])
@pytest.mark.parametrize("how", ENDINGS)
def test_a_replay_is_blind_as_the_end_of_its_parent_says(how: str, key: str) -> None:
    """Under another key it is another action, of which nothing is known."""
    into, blind = ENDINGS[how]
    contract()
    job_id = one(dedupe_key="order-1")
    into(job_id)
    edit = edited_replay.prepare(get(job_id), dedupe_key="order-2").edit if key == "other" else None
    child = replay(job_id, edit=edit)
    end(begin(child))
    assert kinds(job_id, child) == ([BLIND] if blind and key == "same" else [])


def test_a_confirmation_in_between_prevents_the_blind_run() -> None:
    contract()
    job_id = one()
    lose(begin(job_id))
    assert say(job_id, "r") is Applied.CONFIRMED
    assert lifecycle.claim([job_id], worker="w") == []
    assert kinds(job_id) == []


# Contradictions, and confirmations after a rejection.


@pytest.mark.parametrize("when", ["confirmed", "while a run goes on"])
def test_a_rejection_of_what_is_confirmed_is_a_contradiction_once(when: str) -> None:
    contract(success="callback")
    job_id = one()
    run = begin(job_id)
    if when == "confirmed":
        hand_over(run, "mail-1")
    say(job_id, "evt-1")
    for _ in range(3):
        assert reject(job_id, ref="evt-1", run=1, detail="bounced") is Applied.CONTRADICTION
    if when != "confirmed":
        hand_over(run, "mail-1")
    assert details(job_id) == [(CONTRADICTION, 1, {"known": "evt-1", "said": "evt-1", "detail": "bounced"})]


def test_a_rejection_of_an_older_run_is_no_contradiction() -> None:
    contract(success="callback", on_unconfirmed="retry")
    job_id = one()
    hand_over(begin(job_id), "mail-1")
    give_up(job_id)
    hand_over(begin(job_id), "mail-1")
    say(job_id, "evt-1")
    assert reject(job_id, run=1) is Applied.SUPERSEDED
    assert kinds(job_id) == [BLIND]


def _dead(job_id: UUID) -> None:
    hand_over(begin(job_id), None)
    assert reject(job_id) is Applied.REJECTED


def _refused_by_the_handler(job_id: UUID) -> None:
    assert lifecycle.settle([failed(begin(job_id), reason="rejected")])


def _retrying(job_id: UUID) -> None:
    hand_over(begin(job_id), None)
    assert reject(job_id, retryable=True) is Applied.RETRYING


def _running(job_id: UUID) -> None:
    begin(job_id)
    assert reject(job_id, run=1) is Applied.KEPT


def _running_again(job_id: UUID) -> None:
    _retrying(job_id)
    sql("UPDATE queues_job SET due_at = jobs_now() WHERE id = %s", job_id)
    begin(job_id)


@pytest.mark.parametrize("then", ["and no more", "its handler too", "the same again", "in other words"])
@pytest.mark.parametrize("into", [_dead, _refused_by_the_handler, _retrying, _running, _running_again])
def test_a_confirmation_after_a_rejection_is_one_sign(into: Callable[[UUID], None], then: str) -> None:
    contract(success="callback")
    job_id = one()
    into(job_id)
    assert say(job_id, "evt-1", run=1) in (Applied.CONFIRMED, Applied.KEPT, Applied.LATE)
    running = get(job_id)
    if then == "its handler too" and running.state == "processing":
        end_of = End(id=job_id, fence=running.fence, verdict=Verdict.CONFIRMED, evidence={"kind": "return", "ref": "m"})
        assert lifecycle.settle([end_of])
    elif then == "the same again":
        say(job_id, "evt-1", run=1)
    elif then == "in other words":
        say(job_id, "evt-1", run=1, detail="really")
    assert details(job_id) == [(AFTER, 1, {"said": "evt-1"})]


def test_a_handler_that_is_confirmed_after_its_run_was_rejected() -> None:
    contract()
    job_id = one()
    run = begin(job_id)
    assert reject(job_id, run=1, detail="bounced") is Applied.KEPT
    end(run, "mail-1")
    assert details(job_id) == [(AFTER, 1, {"said": "mail-1"})]


def test_a_run_that_is_confirmed_after_an_older_one_was_rejected_is_no_sign() -> None:
    contract(success="callback")
    job_id = one()
    _retrying(job_id)
    sql("UPDATE queues_job SET due_at = jobs_now() WHERE id = %s", job_id)
    hand_over(begin(job_id), None)
    assert say(job_id, "evt-1", run=2) is Applied.CONFIRMED
    assert kinds(job_id) == []


# The list.


def test_the_list_is_newest_first_and_bounded() -> None:
    contract(success="callback")
    ids = [one() for _ in range(3)]
    for job_id in ids:
        hand_over(begin(job_id), None)
        say(job_id, "evt-1")
        say(job_id, "evt-2")
        reject(job_id, run=1)
    found = outcomes.signs(name=KIND)
    assert [(s.kind, s.job_id) for s in found] == [
        (kind, job_id) for job_id in reversed(ids) for kind in (CONTRADICTION, SECOND)
    ]
    assert outcomes.signs(name=KIND, kind=SECOND) == [s for s in found if s.kind == SECOND]
    assert outcomes.signs(name="other") == []
    assert outcomes.signs(before=found[1].id, limit=2) == found[2:4]
    assert outcomes.signs(since=found[0].at) == found[:1]
    assert outcomes.signs(until=found[-1].at) == []
