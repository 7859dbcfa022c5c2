"""Replay plans: what is chosen, how it is paced, when it stops, and that everything adds up (I-32, R-05, R-06)."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from dlq.models import PlanItem, ReplayPlan
from dlq.plans import advance, keep, live, people, read, selection
from dlq.plans.create import CountChanged, KeyReused, NothingSelected, PlanRequest, create
from dlq.plans.selection import Selection, SelectionInvalid
from dlq.replaying import Who
from queues import actions, contracts, lifecycle
from queues.models import AuditEntry, Job
from tests.dlq.deaths import die, fold, kill
from tests.factories import accept, claim, confirmed, get, make_type, set_columns, sql

pytestmark = pytest.mark.django_db
ANN = Who(actor="ann", reason="the provider is back", source="ui")


@pytest.fixture(autouse=True)
def _type() -> None:
    make_type()


def plan(n: int | None = None, **overrides: Any) -> ReplayPlan:
    """Make a plan for everything that is dead."""
    wanted = overrides.pop("selection", Selection(type="test.job"))
    request = PlanRequest(**{
        "action": "replay", "selection": wanted, "types": list(contracts.all_current()), "who": ANN,
        "expected_count": n, "rate_per_second": 50, **overrides,
    })  # fmt: skip
    return create(request)[0]


def pass_time(found: ReplayPlan, seconds: float = 2.0) -> None:
    """Let the pace allow more, and what was looked at be looked at again."""
    sql("UPDATE dlq_replayplan SET paced_at = paced_at - make_interval(secs => %s) WHERE id = %s", seconds, found.id)
    sql("UPDATE dlq_planitem SET looked_at = looked_at - make_interval(secs => 10) WHERE plan_id = %s", found.id)


def step(found: ReplayPlan, *, seconds: float = 2.0) -> ReplayPlan:
    """Do one step, as the service would after so long."""
    pass_time(found, seconds)
    live.forget()
    advance.advance(found.id)
    return ReplayPlan.objects.get(id=found.id)


def children(found: ReplayPlan) -> list[UUID]:
    """Return the replays that there are so far."""
    return [item.child for item in PlanItem.objects.filter(plan_id=found.id) if item.child is not None]


def succeed(ids: list[UUID]) -> None:
    """Run jobs and confirm them."""
    lifecycle.settle([confirmed(run) for run in claim(ids)])


def test_a_plan_replays_what_was_chosen_and_follows_it_to_its_outcome() -> None:
    ids = die(5)
    found = plan(5)
    assert (found.total, found.state) == (5, "running")
    found = step(found)
    assert (found.done, found.open, found.state) == (5, 5, "following")
    assert set(PlanItem.objects.filter(plan_id=found.id).values_list("job_id", flat=True)) == set(ids)
    assert {get(job_id).replayed_by for job_id in ids} == set(children(found))
    succeed(children(found)[:4])
    kill(children(found)[4:])
    found = step(found)
    assert (found.confirmed, found.dead_again, found.open, found.state) == (4, 1, 0, "finished")
    assert read.words(found) == "5 replayed, 4 confirmed, 1 dead again"
    entries = AuditEntry.objects.filter(action="job.replayed")
    assert {entry.object_id for entry in entries} == {str(job_id) for job_id in ids}
    assert {(entry.actor, entry.reason) for entry in entries} == {("ann", ANN.reason)}


def test_the_pace_and_the_cap_bound_what_is_replayed() -> None:
    """R-06: a drip, not a flood; and never more on their way than the cap."""
    die(30)
    found = plan(30, rate_per_second=5, concurrency=12)
    assert step(found, seconds=1.0).done == 5
    assert step(found, seconds=0.0).done <= 6
    assert step(found, seconds=60.0).done == 12, "after a pause at most two seconds are caught up, and the cap holds"
    assert step(found, seconds=60.0).done == 12
    succeed(children(found)[:3])
    assert step(found, seconds=60.0).done == 15


def test_a_pace_of_less_than_one_item_in_two_seconds_moves() -> None:
    die(3)
    found = plan(3, rate_per_second=0.4)
    assert step(found, seconds=2.0).done == 0
    assert step(found, seconds=0.6).done == 1
    assert step(found, seconds=0.0).done == 1
    assert step(found, seconds=60.0).done == 2


def test_a_plan_whose_replays_fail_again_stops_and_says_why() -> None:
    """Must show 3: at most its limit plus what was on its way."""
    die(60)
    found = plan(60, concurrency=20, stop_on_failure_ratio=0.5)
    found = step(found)
    assert found.open == 20
    kill(children(found), error="MailServerDown", message="no answer")
    found = step(found)
    assert (found.state, found.done, found.dead_again) == ("stopped", 20, 20)
    assert "20 of the first 20 replays failed again (100%, the limit is 50%)" in found.state_reason
    assert "MailServerDown: no answer" in found.state_reason
    assert step(found).done == 20
    assert AuditEntry.objects.filter(action="replay_plan.stopped", actor="system").count() == 1


def test_replays_that_are_being_retried_count_against_the_plan_before_they_are_dead() -> None:
    die(40)
    found = plan(40, concurrency=10)
    found = step(found)
    failure = {"error_class": "Down", "message": "x", "traceback": ""}
    lifecycle.settle([
        lifecycle.End(id=run.id, fence=run.fence, verdict=lifecycle.Verdict.FAILED, failure=failure, retry_in=60)
        for run in claim(children(found))
    ])  # fmt: skip
    found = step(found)
    assert (found.state, found.failing, found.dead_again, found.done) == ("stopped", 10, 0, 10)
    # It goes on when somebody says so, and then only what comes after is held against it.
    found = people.resume(found.id, who=ANN)
    sql("UPDATE queues_job SET due_at = jobs_now() WHERE state = 'retrying'")
    succeed(children(found))
    found = step(found)
    assert (found.state, found.confirmed, found.failing) == ("running", 10, 0)


def test_with_ratio_zero_the_first_failure_stops_it_and_with_one_nothing_does() -> None:
    die(3)
    first = step(plan(3, stop_on_failure_ratio=0, concurrency=1))
    kill(children(first))
    assert step(first).state == "stopped"
    die(3, fingerprint="a" * 16)
    never = step(plan(3, selection=Selection(type="test.job", fingerprint="a" * 16), stop_on_failure_ratio=1))
    kill(children(never))
    assert step(never).state == "finished"


def test_what_changed_between_the_look_and_the_click_is_skipped() -> None:
    """I-32: filter + as-of + count; later rows are never swept in; selected = done + skipped + failed."""
    ids = die(100)
    as_of = selection.now()
    for job_id in ids[:5]:
        actions.cancel_dead_letter(job_id, actor="bob", reason="r", source="ui")
    for job_id in ids[5:10]:
        actions.replay_job(job_id, actor="bob", reason="r", source="ui")
    die(7)
    found = plan(100, as_of=as_of)
    for _ in range(4):
        found = step(found)
        succeed([job_id for job_id in children(found) if get(job_id).state == "accepted"])
    found = step(found)
    assert (found.total, found.done, found.skipped, found.failed) == (100, 90, 10, 0)
    assert found.why == {"changed": 10}
    assert found.state == "finished"
    details = PlanItem.objects.filter(plan_id=found.id, code="changed").values_list("detail", flat=True)
    assert all("cancelled by bob" in one or "replayed as" in one for one in details)


def test_another_number_than_expected_makes_no_plan() -> None:
    die(3)
    with pytest.raises(CountChanged) as caught:
        plan(2)
    assert (caught.value.expected, caught.value.found) == (2, 3)
    assert not ReplayPlan.objects.exists()
    assert not PlanItem.objects.exists()


def test_the_same_request_twice_is_one_plan() -> None:
    """I-30: a double click, and a retry after a 502."""
    die(3)
    one = plan(3, idempotency_key="k1")
    assert plan(3, idempotency_key="k1").id == one.id
    with pytest.raises(KeyReused):
        plan(3, idempotency_key="k1", rate_per_second=2)
    assert ReplayPlan.objects.count() == 1


def test_two_plans_of_the_same_jobs_replay_each_once() -> None:
    ids = die(6)
    one, two = plan(6), plan(6)
    one, two = step(one), step(two)
    assert one.done == 6
    assert (two.done, two.skipped, two.why) == (0, 6, {"changed": 6})
    assert Job.objects.filter(replay_of__in=ids).count() == 6


def test_ids_are_counted_once_and_unknown_ones_are_left_out() -> None:
    """R-05: repeated ids, unknown ids, ids of types that the caller may not use; nothing left: refused."""
    make_type("secret")
    mine, theirs = die(2), die(1, kind="secret")
    wanted = Selection(ids=(mine[0], mine[0], mine[1], theirs[0], uuid4()))
    found = plan(None, selection=wanted, types=["test.job"])
    assert (found.total, found.left_out) == (2, 2)
    assert step(found).done == 2
    assert get(theirs[0]).replayed_by is None
    with pytest.raises(NothingSelected):
        plan(None, selection=Selection(ids=(theirs[0],)), types=["test.job"])
    with pytest.raises(SelectionInvalid):
        plan(None, selection=Selection(ids=()))
    with pytest.raises(SelectionInvalid):
        plan(None, selection=Selection(type="test.job"))


def test_unsafe_items_are_skipped_unless_the_plan_is_forced() -> None:
    """Late evidence speaks against one; another's key moved on, which nobody can force."""
    done, moved, fine = die(1)[0], die(1, dedupe_key="k1")[0], die(1)[0]
    set_late(done)
    sql("UPDATE queues_dedupekey SET job_id = %s WHERE key = 'k1'", fine)
    found = step(plan(3))
    assert found.why == {"already_done": 1, "superseded": 1}
    assert (found.done, found.skipped) == (1, 2)
    forced = step(plan(2, forced=True, selection=Selection(type="test.job")))
    assert (forced.done, forced.why) == (1, {"superseded": 1})
    assert get(moved).replayed_by is None


def set_late(job_id: UUID) -> None:
    """Let the outside world confirm a dead letter."""
    lifecycle.confirm([lifecycle.Proof(id=job_id, positive=True, kind="callback", ref="late-1")])


def test_a_dry_run_changes_no_job() -> None:
    ids = die(3)
    set_late(ids[0])
    found = step(plan(3, dry_run=True))
    assert (found.state, found.done, found.skipped) == ("finished", 2, 1)
    assert found.why == {"already_done": 1, "unknown": 2}
    assert not Job.objects.filter(replay_of__isnull=False).exists()
    assert "2 would be replayed" in read.words(found)


def test_live_work_comes_first() -> None:
    """A plan waits while live work of its queue is not taken in time, says so, and does not catch the time up."""
    die(10)
    late = accept(1)
    set_columns(late[0], raw_due_at="jobs_now() - interval '20 s'")
    found = step(plan(10, rate_per_second=2))
    assert (found.done, found.state) == (0, "running")
    assert "Live work comes first: test.job is due for 2" in found.held
    succeed(late)
    found = step(found, seconds=0.6)
    assert (found.done, found.held) == (1, "")


@pytest.mark.parametrize("switch", ["paused", "deferred"])
def test_a_type_on_hold_holds_its_plan(switch: str) -> None:
    die(2)
    found = plan(2)
    sql(f"UPDATE queues_jobtype SET {switch} = true, {switch}_reason = 'x'")
    contracts.forget()
    found = step(found)
    assert (found.done, found.skipped, found.held) == (0, 0, f"test.job is {switch}")


def test_a_dependency_that_fails_for_everybody_stops_a_plan_before_it_begins() -> None:
    sql("UPDATE queues_jobtype SET dependency = 'mail'")
    contracts.forget()
    die(10, reason="time_limit")
    fold()
    found = step(plan(10))
    assert (found.state, found.done) == ("stopped", 0)
    assert "Nothing was replayed: mail fails (10 of the newest 10 runs failed" in found.state_reason


def test_a_job_that_cannot_be_replayed_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement of a whole step breaks on one row: that item fails and says why, the others are replayed."""
    ids = die(3)
    real = lifecycle.replay_many

    def breaks(wanted: Any, **options: Any) -> Any:
        if ids[1] in wanted:
            sql("SELECT 1 / 0")
        return real(wanted, **options)

    monkeypatch.setattr(lifecycle, "replay_many", breaks)
    found = step(plan(3))
    assert (found.done, found.failed, found.why) == (2, 1, {"not_replayed": 1})
    assert "division by zero" in PlanItem.objects.get(state="failed").detail


def test_a_resume_goes_on_though_the_dependency_failed_a_moment_ago() -> None:
    sql("UPDATE queues_jobtype SET dependency = 'mail'")
    contracts.forget()
    die(10, reason="time_limit")
    fold()
    found = step(plan(10))
    assert found.state == "stopped"
    people.resume(found.id, who=ANN)
    assert step(found).done == 10


def test_items_of_old_plans_are_forgotten_and_the_plan_stays() -> None:
    die(2)
    found = step(plan(2, dry_run=True))
    keep.forget_items()
    assert PlanItem.objects.count() == 2
    sql("UPDATE dlq_replayplan SET finished_at = finished_at - interval '91 days'")
    keep.forget_items()
    assert PlanItem.objects.count() == 0
    assert ReplayPlan.objects.get(id=found.id).done == 2


def test_people_pause_resume_and_abort() -> None:
    die(6)
    found = step(plan(6, rate_per_second=1), seconds=2.0)
    assert found.done == 2
    assert people.pause(found.id, who=ANN).state == "paused"
    assert people.pause(found.id, who=ANN).state == "paused"
    succeed(children(found))
    found = step(found)
    assert (found.done, found.confirmed) == (2, 2), "it is followed while it is paused"
    assert people.resume(found.id, who=ANN).state == "running"
    found = people.abort(found.id, who=ANN)
    with pytest.raises(people.NotPossible):
        people.resume(found.id, who=ANN)
    found = step(found)
    assert (found.state, found.skipped, found.why) == ("aborted", 4, {"aborted": 4})
    assert found.finished_at is not None
    assert AuditEntry.objects.filter(object_type="replay_plan").count() == 4


@pytest.mark.parametrize(("action", "resolution"), [("cancel", "cancelled"), ("ignore", "ignored")])
def test_bulk_cancel_and_ignore_resolve_dead_letters(action: str, resolution: str) -> None:
    ids = die(4)
    found = step(plan(4, action=action))
    assert (found.state, found.done) == ("finished", 4)
    assert {get(job_id).resolution for job_id in ids} == {resolution}


def test_waiting_jobs_are_cancelled_in_bulk_and_only_what_waited_then() -> None:
    """I-31: what has begun or ended meanwhile is skipped with the reason."""
    ids = accept(5)
    as_of = selection.now()
    accept(2)
    succeed(ids[:1])
    found = plan(4, action="cancel", as_of=as_of, selection=Selection(type="test.job", state="waiting"))
    kill(ids[4:])
    found = step(found)
    assert (found.total, found.done, found.why) == (4, 3, {"changed": 1}), "what has died is no waiting job any more"
    assert (get(ids[4]).state, get(ids[4]).resolution) == ("dead", "open")
    assert {get(job_id).reason for job_id in ids[1:4]} == {"operator"}
    assert {get(job_id).state for job_id in ids[1:4]} == {"cancelled"}
    assert Job.objects.filter(state="accepted").count() == 2
