"""A replay plan that is struck at any point: what was done is done once, what was not is done by whoever comes next."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from dlq.models import PlanItem, ReplayPlan
from queues.faults import POINTS
from queues.models import AuditEntry, Job
from queues.states import JobState
from tests.dlq.deaths import die
from tests.faults.child import Action
from tests.faults.stories import PLAIN, PLAN_POINTS, STORIES
from tests.faults.test_fault_points import ACTIONS, _heal, _tell, log, stage_set  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("stage_set")]
MAKE, *STEP = PLAN_POINTS


def _finish(plan_id: UUID) -> ReplayPlan:
    for _ in range(10):
        STORIES["advance_plan"](plan_id)
        _heal()
        found = ReplayPlan.objects.get(id=plan_id)
        if found.state == "finished":
            return found
    raise AssertionError(f"the plan is {found.state}: {found.state_reason} {found.held}")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", STEP)
def test_a_plan_goes_on_after_a_fault_and_replays_each_once(point: str, action: Action, log: Path) -> None:  # noqa: F811
    """I-32, I-35: killed, failed or held up in a step; every item ends once, with its entry in the audit log."""
    assert point in POINTS
    ids = die(3, kind=PLAIN)
    plan_id = UUID(STORIES["make_plan"]())
    _tell("advance_plan", plan_id, point=point, action=action, log=log)
    done = Job.objects.filter(replay_of__in=ids).count()
    assert done == PlanItem.objects.filter(plan_id=plan_id, state="done").count() == ReplayPlan.objects.get().done
    found = _finish(plan_id)
    assert (found.done, found.confirmed, found.skipped, found.failed) == (3, 3, 0, 0)
    assert Counter(Job.objects.filter(replay_of__in=ids).values_list("replay_of", flat=True)) == Counter(ids)
    assert set(Job.objects.filter(replay_of__in=ids).values_list("state", flat=True)) == {JobState.CONFIRMED}
    assert AuditEntry.objects.filter(action="job.replayed").count() == 3


@pytest.mark.parametrize("action", ACTIONS)
def test_a_plan_is_made_whole_or_not_at_all_and_asked_again_it_is_one(action: Action, log: Path) -> None:  # noqa: F811
    """I-30: nothing but whole plans, whoever dies; the second request finds the first one's."""
    die(3, kind=PLAIN)
    told = _tell("make_plan", point=MAKE, action=action, log=log)
    assert PlanItem.objects.count() == (3 if told.answer else 0)
    again = STORIES["make_plan"]()
    assert told.answer in (None, again)
    assert ReplayPlan.objects.count() == 1
    assert PlanItem.objects.count() == 3
    assert AuditEntry.objects.filter(action="replay_plan.created").count() == 1
