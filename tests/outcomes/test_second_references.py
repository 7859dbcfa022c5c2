"""Two different references for one business action: when they are a sign, and when they are none (DESIGN.md 5).

Also what a run brings that is no longer the job's.
"""

from __future__ import annotations

import datetime as dt

import pytest

from jobsboard.testing import run_pending
from queues import confirmation, edited_replay, handlers, lifecycle
from queues.confirmation import Applied, Evidence
from queues.handlers import Confirmed
from queues.lifecycle import Run
from queues.states import Reason
from tests.factories import confirmed, failed, get, sql
from tests.outcomes.deeds import (
    BLIND,
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


# Two different references for one business action.


def test_a_second_callback_with_another_reference_is_a_sign_however_often_it_is_said() -> None:
    contract(success="callback")
    job_id = one()
    hand_over(begin(job_id), None)
    assert say(job_id, "evt-1") is Applied.CONFIRMED
    assert say(job_id, "evt-1") is Applied.DUPLICATE
    assert say(job_id, None) is Applied.DUPLICATE
    assert kinds(job_id) == []
    for detail in ("", "", "in other words", ""):
        assert say(job_id, "evt-2", detail=detail) is Applied.DUPLICATE
    assert say(job_id, "evt-2", run=7) is Applied.DUPLICATE
    assert say(job_id, "evt-1", detail="the first again") is Applied.DUPLICATE
    assert details(job_id) == [(SECOND, 1, {"known": "evt-1", "said": "evt-2"})]
    say(job_id, "evt-3")
    assert details(job_id)[1:] == [(SECOND, 1, {"known": "evt-1", "said": "evt-3"})]


def test_the_signs_of_one_job_are_bounded() -> None:
    """A provider that says something new each time fills no table."""
    contract(success="callback")
    job_id = one()
    hand_over(begin(job_id), None)
    for number in range(30):
        say(job_id, f"evt-{number}")
    assert kinds(job_id) == [SECOND] * 20
    for number in range(5):
        reject(job_id, run=1, detail=f"no {number}")
    assert kinds(job_id) == [SECOND] * 20


def test_references_that_come_while_a_run_goes_on() -> None:
    contract(success="callback")
    job_id = one()
    run = begin(job_id)
    assert (say(job_id, "evt-1"), say(job_id, "evt-2")) == (Applied.KEPT, Applied.DUPLICATE)
    hand_over(run, "handed-1")
    assert get(job_id).state == "confirmed"
    assert details(job_id) == [(SECOND, 1, {"known": "evt-1", "said": "evt-2"})]


def test_two_late_references_are_a_sign_as_well() -> None:
    contract()
    job_id = one()
    assert lifecycle.settle([failed(begin(job_id), reason="permanent_error")])
    assert (say(job_id, "evt-1"), say(job_id, "evt-1"), say(job_id, "evt-2")) == (Applied.LATE,) * 3
    assert details(job_id) == [(SECOND, 1, {"known": "evt-1", "said": "evt-2"})]


def test_references_of_different_kinds_are_not_compared() -> None:
    """What a callback or a check names may be another thing than what the handler got, or what a person writes."""
    contract(success="callback")
    job_id = one()
    hand_over(begin(job_id), "mail-1")
    say(job_id, "evt-1")
    by_hand = Evidence(outcome="confirmed", ref="ticket 7", kind="manual")
    confirmation.confirm_job(job_id, by_hand, actor="jane", reason="seen", source="ui")
    assert get(job_id).state == "confirmed"
    assert kinds(job_id) == []


def test_a_check_that_names_it_otherwise_is_no_second_reference() -> None:
    contract(success="callback", on_unconfirmed="retry")
    job_id = one()
    hand_over(begin(job_id), "mail-1")
    give_up(job_id)
    handlers.check(KIND)(lambda job: Confirmed("row 17 of the log"))
    handlers.handler(KIND)(lambda job: Confirmed("never"))
    run_pending(ahead=dt.timedelta(minutes=1))
    assert get(job_id).state == "confirmed"
    assert kinds(job_id) == []


@pytest.mark.parametrize(("then", "sign"), [("a", False), ("b", True), (None, False)])
def test_a_retry_whose_handler_gets_another_reference(then: str | None, sign: bool) -> None:
    contract(success="callback", on_unconfirmed="retry")
    job_id = one()
    hand_over(begin(job_id), "a")
    give_up(job_id)
    hand_over(begin(job_id), then)
    expected = [(SECOND, 2, {"known": "a", "said": "b"})] if sign else []
    assert [row for row in details(job_id) if row[0] != BLIND] == expected


@pytest.mark.parametrize("names", ["the reference", "another name", "nothing"])
@pytest.mark.parametrize("when", ["awaiting", "retrying"])
def test_a_reference_that_was_rejected_stands_for_nothing(names: str, when: str) -> None:
    contract(success="callback", on_unconfirmed="retry")
    job_id = one()
    hand_over(begin(job_id), "a")
    if when == "retrying":
        give_up(job_id)
    ref = {"the reference": "a", "another name": "evt-9", "nothing": None}[names]
    assert reject(job_id, ref=ref, run=1, retryable=True) is Applied.RETRYING
    sql("UPDATE queues_job SET due_at = jobs_now() WHERE id = %s", job_id)
    hand_over(begin(job_id), "b")
    assert kinds(job_id) == []


def test_a_rejection_excuses_its_own_run_only() -> None:
    """The first reference was rejected; the second was not, so the third is one too many."""
    contract(success="callback", on_unconfirmed="retry")
    job_id = one()
    hand_over(begin(job_id), "a")
    reject(job_id, retryable=True)
    sql("UPDATE queues_job SET due_at = jobs_now() WHERE id = %s", job_id)
    hand_over(begin(job_id), "b")
    give_up(job_id)
    hand_over(begin(job_id), "c")
    assert details(job_id) == [
        (BLIND, 3, {"error_class": "Unconfirmed"}),
        (SECOND, 3, {"known": "b", "said": "c"}),
    ]


def test_a_run_that_was_rejected_before_its_end_brings_no_second_reference() -> None:
    contract(success="callback", on_unconfirmed="retry")
    job_id = one()
    hand_over(begin(job_id), "a")
    give_up(job_id)
    run = begin(job_id)
    assert reject(job_id, run=2, retryable=True) is Applied.KEPT
    hand_over(run, "b")
    assert get(job_id).state == "retrying"
    assert kinds(job_id) == [BLIND]


def test_a_replay_under_its_key_is_the_same_action_and_under_another_key_is_not() -> None:
    contract(success="callback", on_unconfirmed="dead")
    job_ids = [one(dedupe_key=f"order-{n}") for n in range(2)]
    for job_id in job_ids:
        hand_over(begin(job_id), "a")
        give_up(job_id)
    same = replay(job_ids[0])
    hand_over(begin(same), "b")
    assert details(same) == [(BLIND, 1, {}), (SECOND, 1, {"known": "a", "said": "b"})]
    other = replay(job_ids[1], edit=edited_replay.prepare(get(job_ids[1]), dedupe_key="order-9").edit)
    hand_over(begin(other), "b")
    assert kinds(other) == []


# What a run brings that is no longer the job's.


def stale(run: Run, ref: str) -> Applied:
    return confirmation.by_superseded_run(run.id, run=run.fence, ref=ref).applied


def test_a_superseded_run_saves_the_next_one() -> None:
    """I-09: its word is evidence all the same, so the second mail is not sent."""
    contract()
    job_id = one()
    run = begin(job_id)
    lose(run)
    assert stale(run, "mail-1") is Applied.CONFIRMED
    found = get(job_id).evidence
    assert found is not None
    assert (get(job_id).state, found["kind"], found["ref"], found["run"]) == ("confirmed", "reference", "mail-1", 1)
    assert lifecycle.claim([job_id], worker="w") == []
    assert kinds(job_id) == []


@pytest.mark.parametrize(("second", "signs"), [("mail-2", [BLIND, SECOND]), ("mail-1", [BLIND]), (None, [BLIND])])
def test_a_superseded_run_beside_the_one_that_goes_on(second: str | None, signs: list[str]) -> None:
    """I-26: also where its own end is offered a second time, its answer having been lost."""
    contract()
    job_id = one()
    old = begin(job_id)
    lose(old)
    new = begin(job_id)
    assert stale(old, "mail-1") is Applied.KEPT
    new_end = confirmed(new, second) if second else failed(new)
    assert lifecycle.settle([new_end])
    found = get(job_id).evidence
    assert found is not None and (get(job_id).state, found["ref"]) == ("confirmed", "mail-1")
    assert kinds(job_id) == signs
    assert stale(new, second or "mail-1") is Applied.DUPLICATE
    assert kinds(job_id) == signs
    if SECOND in signs:
        assert details(job_id)[1] == (SECOND, 2, {"known": "mail-1", "said": "mail-2"})


def test_a_superseded_run_after_the_one_that_confirmed() -> None:
    contract()
    job_id = one()
    old = begin(job_id)
    lose(old)
    new = begin(job_id)
    end(new, "mail-2")
    assert stale(new, "mail-2") is Applied.DUPLICATE
    assert kinds(job_id) == [BLIND]
    for _ in range(2):
        assert stale(old, "mail-1") is Applied.DUPLICATE
    assert details(job_id)[1:] == [(SECOND, 1, {"known": "mail-2", "said": "mail-1"})]


def test_a_superseded_run_against_a_reference_that_is_awaited() -> None:
    contract(on_unconfirmed="check_again")
    job_id = one()
    old = begin(job_id)
    lose(old)
    hand_over(begin(job_id), "mail-2")
    assert stale(old, "mail-1") is Applied.CONFIRMED
    assert details(job_id)[1:] == [(SECOND, 1, {"known": "mail-2", "said": "mail-1"})]


def test_a_superseded_run_of_a_job_that_a_callback_confirmed_says_nothing_new() -> None:
    contract()
    job_id = one()
    old = begin(job_id)
    lose(old)
    say(job_id, "evt-1")
    assert stale(old, "mail-1") is Applied.DUPLICATE
    assert (kinds(job_id), get(job_id).late_evidence) == ([], None)


@pytest.mark.parametrize("how", ["dead", "cancelled", "expired"])
def test_a_superseded_run_of_a_job_that_has_ended_is_late_evidence(how: str) -> None:
    contract(on_worker_lost="dead" if how == "dead" else "retry")
    job_id = one(dedupe_key="order-1")
    old = begin(job_id)
    lose(old)
    if how == "cancelled":
        lifecycle.cancel([job_id], reason=Reason.OPERATOR)
    elif how == "expired":
        sql("UPDATE queues_job SET expires_at = jobs_now() WHERE id = %s", job_id)
        lifecycle.expire([job_id])
    assert get(job_id).state == how
    assert stale(old, "mail-1") is Applied.LATE
    notes = get(job_id).late_evidence
    assert notes is not None
    assert [(n["kind"], n["ref"], n["run"]) for n in notes] == [("reference", "mail-1", 1)]
    assert kinds(job_id) == []


def test_a_superseded_run_confirms_the_replay_of_its_job() -> None:
    """The newest of the lineage; under another key nothing."""
    contract(on_worker_lost="dead")
    same, other = one(dedupe_key="order-1"), one(dedupe_key="order-2")
    runs = {job_id: begin(job_id) for job_id in (same, other)}
    for run in runs.values():
        lose(run)
    child = replay(same)
    stranger = replay(other, edit=edited_replay.prepare(get(other), dedupe_key="order-3").edit)
    assert stale(runs[same], "mail-1") is Applied.CONFIRMED
    assert get(child).state == "confirmed"
    assert stale(runs[other], "mail-1") is Applied.LATE
    assert get(stranger).state == "accepted"


def test_a_replay_of_what_was_rejected_may_get_another_reference() -> None:
    contract(success="callback")
    job_id = one()
    hand_over(begin(job_id), "a")
    assert reject(job_id) is Applied.REJECTED
    child = replay(job_id)
    hand_over(begin(child), "b")
    assert kinds(job_id, child) == []
