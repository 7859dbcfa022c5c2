"""Failure groups: one for each failure, its state, and what changes by itself."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from dlq import groups, triage
from dlq.groups import GroupFilter, GroupRow
from dlq.models import FailureGroup
from dlq.plans import advance
from dlq.plans.create import PlanRequest, create
from dlq.plans.selection import Selection
from dlq.replaying import Who
from queues import lifecycle
from queues.models import AuditEntry
from tests.dlq.deaths import die, fold, kill
from tests.factories import claim, confirmed, get, make_type, sql

pytestmark = pytest.mark.django_db
ANN = Who(actor="ann", reason="known, fixed in 4.2", source="ui")


@pytest.fixture(autouse=True)
def _type() -> None:
    make_type()


def meet() -> None:
    """Fold, and do one round of the service, half a minute later."""
    fold()
    sql("UPDATE queues_failurecount SET last_at = last_at - interval '2 minutes'")
    sql("UPDATE dlq_failuregroup SET state_at = state_at - interval '1 minute'")
    triage.run_once()


def only(**wanted: Any) -> GroupRow:
    """Return the one group of a list."""
    [row] = groups.groups(GroupFilter(types=["test.job", "other"], **wanted)).rows
    return row


def test_a_new_failure_becomes_a_group_with_its_sample_and_triage() -> None:
    ids = die(3, message="card 4111111111111111 declined by 'visa'", error="CardDeclined")
    meet()
    row = only()
    assert (row.died, row.open, row.state, row.error_class) == (3, 3, "open", "CardDeclined")
    assert row.sample == ids[-1]
    assert sum(row.hours) == 3
    assert row.hours[-1] == 3 or row.hours[-2] == 3
    assert row.triage is not None
    assert row.triage["looked"] == 3
    assert row.triage["verdicts"] == {"unsafe": 3}, "the newest runs all failed"
    assert row.triage["unknown"] == {"already_done": 3, "idempotency_key": 3}
    assert groups.group_of(get(ids[0])) == groups.group(row.id)
    assert groups.open_groups() == 1


def test_a_group_whose_dead_letters_are_all_gone_is_resolved_and_one_more_reopens_it() -> None:
    ids = die(2)
    meet()
    children = lifecycle.replay_many(ids, by="ann", priority=0)
    lifecycle.settle([confirmed(run) for run in claim(list(children.values()))])
    meet()
    assert only(state="resolved").state_by == "system"
    assert groups.groups(GroupFilter(types=["test.job"])).rows == []
    die(1)
    meet()
    row = only()
    assert (row.state, row.regressions, row.open) == ("open", 1, 1)
    assert row.regressed_at is not None
    assert AuditEntry.objects.filter(action="failure_group.regressed").count() == 1
    meet()
    assert only().regressions == 1, "it came back once"


def test_what_somebody_resolved_comes_back_with_the_next_death() -> None:
    die(1)
    meet()
    groups.resolve(only().id, who=ANN)
    meet()
    assert only().state == "resolved"
    die(1)
    meet()
    assert (only().state, only().regressions) == ("open", 1)


def test_an_ignored_group_stays_ignored_until_its_time_and_counts_on() -> None:
    die(1)
    meet()
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    groups.ignore(only().id, until=until, who=ANN)
    die(2)
    meet()
    assert groups.groups(GroupFilter(types=["test.job"])).rows == []
    row = only(state="ignored")
    assert (row.open, row.state_by, row.state_reason, row.ignored_until) == (3, "ann", ANN.reason, until)
    sql("UPDATE dlq_failuregroup SET ignored_until = jobs_now() - interval '1 s'")
    meet()
    assert (only().state, only().regressions) == ("open", 0)


def test_people_write_notes_and_everything_is_in_the_audit_log() -> None:
    die(1)
    fold()
    group_id = only().id
    groups.annotate(group_id, note="see INC-7", owner="payments", who=ANN)
    groups.resolve(group_id, who=ANN)
    groups.reopen(group_id, who=ANN)
    groups.reopen(group_id, who=ANN)
    row = only()
    assert (row.note, row.owner, row.state) == ("see INC-7", "payments", "open")
    actions = list(AuditEntry.objects.order_by("id").values_list("action", flat=True))
    assert actions == [f"failure_group.{verb}" for verb in ("annotated", "resolved", "reopened")]
    with pytest.raises(groups.GroupNotFound):
        groups.resolve(10**9, who=ANN)


def test_a_group_that_a_plan_replays_says_so_until_the_plan_ends() -> None:
    die(2)
    meet()
    request = PlanRequest(
        action="replay",
        selection=Selection(type="test.job"),
        types=["test.job"],
        expected_count=2,
        who=ANN,
        forced=True,
    )
    plan, _ = create(request)
    assert (only().state, only().plan_id) == ("replaying", plan.id)
    sql("UPDATE dlq_replayplan SET paced_at = paced_at - interval '2 s'")
    advance.advance(plan.id)
    children = [row[0] for row in sql("SELECT child FROM dlq_planitem")]
    lifecycle.settle([confirmed(run) for run in claim(children[:1])])
    kill(children[1:])
    advance.advance(plan.id)
    meet()
    row = only()
    assert (row.state, row.plan_id, row.open, row.regressions) == ("open", None, 1, 0)


def test_groups_come_tier_1_first_and_page_by_page() -> None:
    make_type("other", tier_id=1)
    for n in range(5):
        die(1, fingerprint=f"{n:016x}")
    die(1, kind="other")
    meet()
    wanted = GroupFilter(types=["test.job", "other"])
    first = groups.groups(wanted, limit=4)
    rest = groups.groups(wanted, after=first.older, limit=4)
    assert [row.tier for row in first.rows] == [1, 2, 2, 2]
    assert len({row.id for row in (*first.rows, *rest.rows)}) == 6
    assert rest.older is None
    assert [row.type for row in groups.groups(GroupFilter(types=["other"])).rows] == ["other"]


def test_a_failure_that_is_forgotten_takes_its_group_along() -> None:
    ids = die(1)
    meet()
    lifecycle.close_dead_letters(ids, resolution="cancelled", by="ann")
    meet()
    sql("UPDATE queues_failurecount SET last_at = jobs_now() - interval '91 days'")
    assert lifecycle.forget_failures(days=90, hour_days=8, limit=100) == 1
    triage.forget_gone()
    assert not FailureGroup.objects.exists()


def test_the_frame_is_the_applications_own() -> None:
    text = (
        'Traceback (most recent call last):\n  File "/srv/app/billing/jobs.py", line 88, in charge\n    x()\n'
        '  File "/srv/venv/site-packages/httpx/c.py", line 3, in send\n    y()\nhttpx.Timeout: no\n'
    )
    assert triage.frame_of(text) == "/srv/app/billing/jobs.py:88 charge"
    assert triage.frame_of("") == ""
