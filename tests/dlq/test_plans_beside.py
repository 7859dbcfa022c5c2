"""Plans beside what else goes on: other plans of the same failure, live work of another tier, breakers, runs."""

from __future__ import annotations

from uuid import UUID

import pytest

from dlq import groups, triage, watch
from dlq.groups import GroupRow
from dlq.models import PlanFailure, PlanItem, ReplayPlan
from dlq.plans import people
from dlq.plans.selection import Selection
from queues import contracts, lifecycle
from queues.models import AuditEntry, FailureCount
from tests.dlq.deaths import die, fold, kill
from tests.dlq.test_plans import ANN, children, plan, step, succeed
from tests.factories import accept, claim, failed, get, make_type, set_columns, sql

pytestmark = pytest.mark.django_db
F = "f" * 16


@pytest.fixture(autouse=True)
def _type() -> None:
    make_type()


def group(fingerprint: str = F) -> GroupRow:
    """Return the group of a failure."""
    row = groups.group(FailureCount.objects.get(fingerprint=fingerprint).id)
    assert row is not None
    return row


def of(ids: list[UUID]) -> ReplayPlan:
    """Make a plan of these jobs; forced, since everybody's newest runs are these deaths."""
    return plan(None, selection=Selection(ids=tuple(ids)), concurrency=1, forced=True)


# ---- a group and the plans that are at it


def test_a_group_is_being_replayed_while_any_plan_is_at_it() -> None:
    """The later one ends first, the earlier one stops and goes on: the group says what is so, not what came last."""
    ids = die(4)
    fold()
    first, second = of(ids[:3]), of(ids[3:])
    assert (group().state, group().plan_id) == ("replaying", second.id)
    second = step(second)
    succeed(children(second))
    assert step(second).state == "finished"
    assert (group().state, group().plan_id, group().state_by) == ("replaying", first.id, "ann")
    third = of(ids[:1])
    people.abort(third.id, who=ANN)
    assert (group().state, group().plan_id) == ("replaying", first.id)
    people.pause(first.id, who=ANN)
    assert group().state == "replaying"
    sql("UPDATE dlq_replayplan SET state = 'stopped', state_reason = 'x' WHERE id = %s", first.id)
    assert (group().state, group().plan_id) == ("open", None)
    people.resume(first.id, who=ANN)
    assert group().state == "replaying"
    assert watch.states()[0] == {"open": 0, "replaying": 1, "resolved": 0, "ignored": 0}
    people.abort(first.id, who=ANN)
    assert group().state == "open"
    assert not PlanFailure.objects.exists()


def test_what_a_person_says_of_a_group_stands_after_the_plan() -> None:
    die(2)
    fold()
    found = plan(2)
    groups.resolve(group().id, who=ANN)
    assert group().state == "replaying", "a plan is at it all the same"
    people.abort(found.id, who=ANN)
    assert (group().state, group().state_by) == ("resolved", "ann")


def test_a_group_is_not_resolved_under_a_plan_and_does_not_come_back_because_of_it() -> None:
    """Its only dead letter is on its way again: nobody can say yet that the failure is gone."""
    die(1)
    fold()
    found = step(plan(1, forced=True))
    fold()
    sql("UPDATE queues_failurecount SET last_at = last_at - interval '2 minutes'")
    triage.run_once()
    sql("UPDATE dlq_failuregroup SET state_at = state_at - interval '1 minute'")
    triage.run_once()
    assert (group().open, group().state) == (0, "replaying")
    kill(children(found))
    fold()
    step(found)
    triage.run_once()
    assert (group().state, group().regressions, group().open) == ("open", 0, 1)


def test_a_dry_run_and_a_cancel_are_no_replay_of_a_group() -> None:
    die(2)
    fold()
    plan(2, dry_run=True)
    plan(2, action="ignore")
    assert group().state == "open"


# ---- what a plan waits for


def test_live_work_that_carries_an_older_tier_comes_first_too() -> None:
    """The type moved to another tier since its jobs were accepted; the workers of its queue take them all the same."""
    die(1)
    late = accept(1)
    fold()
    set_columns(late[0], raw_due_at="jobs_now() - interval '20 s'")
    sql("UPDATE queues_jobtype SET tier_id = 1")
    contracts.forget()
    found = step(plan(1))
    assert (found.done, get(late[0]).tier) == (0, 2)
    assert "Live work comes first: test.job is due for 2" in found.held


@pytest.mark.parametrize(("state", "done"), [("open", 0), ("half_open", 2), ("closed", 2)])
def test_an_open_breaker_holds_a_plan_and_a_half_open_one_gets_its_trials(state: str, done: int) -> None:
    """What is held would only pile up behind it; and without any job a half open one would never close."""
    die(2)
    found = plan(2)
    sql("UPDATE queues_jobtype SET dependency = 'crm', breaker = %s", state)
    contracts.forget()
    found = step(found)
    assert (found.done, found.held) == (done, "" if done else "The breaker of crm is open")


# ---- a bulk cancel and what began meanwhile


def test_a_job_that_began_since_it_was_chosen_is_asked_to_stop_and_does_not_run_again() -> None:
    """I-31: a wrong batch is cancelled; the one that a worker has just begun would fail, wait, and run once more."""
    ids = accept(3)
    found = plan(3, action="cancel", selection=Selection(type="test.job", state="waiting"))
    [run] = claim(ids[:1])
    found = step(found)
    assert (found.state, found.done, found.skipped, found.why) == ("finished", 3, 0, {"asked_to_stop": 1})
    assert (get(ids[0]).state, get(ids[0]).cancel_requested) == ("processing", True)
    lifecycle.settle([failed(run, retry_in=1.0)])
    assert {get(job_id).state for job_id in ids} == {"cancelled"}
    assert AuditEntry.objects.filter(action="job.cancelled").count() == 3
    assert PlanItem.objects.get(code="asked_to_stop").job_id == ids[0]


def test_a_job_that_was_asked_to_stop_already_is_not_asked_for_a_minute() -> None:
    ids = accept(1)
    found = plan(1, action="cancel", selection=Selection(type="test.job", state="waiting"))
    claim(ids)
    sql("UPDATE queues_job SET cancel_requested = true")
    found = step(found)
    assert (found.state, found.done, found.why) == ("finished", 1, {"asked_to_stop": 1})
