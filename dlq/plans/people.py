"""What people do to a plan: pause, resume, abort. Asked twice, the answer is the same."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.db import transaction

from dlq import groups, sql
from dlq.models import ReplayPlan
from dlq.plans import advance
from dlq.replaying import Who
from queues import audit, lifecycle

_State = ReplayPlan.State
ALIVE: Final = (_State.RUNNING, _State.PAUSED, _State.STOPPED)
"""States in which something may still be carried out."""


class PlanNotFound(LookupError):
    """There is no plan of this id."""


class NotPossible(Exception):
    """The plan is in a state in which this cannot be done."""

    def __init__(self, plan: ReplayPlan, verb: str) -> None:
        super().__init__(f"the plan is {plan.get_state_display().lower()} and cannot be {verb}")
        self.plan = plan


def pause(plan_id: UUID, *, who: Who) -> ReplayPlan:
    """Hold a running plan; what it has replayed goes on. Raises: PlanNotFound, NotPossible."""
    with transaction.atomic():
        plan = _locked(plan_id)
        if plan.state == _State.PAUSED:
            return plan
        if plan.state != _State.RUNNING:
            raise NotPossible(plan, "paused")
        return _move(plan, _State.PAUSED, who=who, verb="paused")


def resume(plan_id: UUID, *, who: Who) -> ReplayPlan:
    """Let a paused or stopped plan go on; its stop rule begins afresh. Raises: PlanNotFound, NotPossible."""
    with transaction.atomic():
        plan = _locked(plan_id)
        if plan.state == _State.RUNNING:
            return plan
        if plan.state not in (_State.PAUSED, _State.STOPPED):
            raise NotPossible(plan, "resumed")
        now = sql.clock()
        plan.judged_since, plan.paced_at = now, now
        plan.judged_ok = plan.judged_bad = plan.failing = 0
        if plan.action == ReplayPlan.Action.REPLAY and not plan.dry_run:
            groups.being_replayed(plan.id)
        return _move(plan, _State.RUNNING, who=who, verb="resumed")


def abort(plan_id: UUID, *, who: Who) -> ReplayPlan:
    """End a plan: what was not begun stays as it is, and is marked as skipped. Raises: PlanNotFound, NotPossible."""
    with transaction.atomic():
        plan = _locked(plan_id)
        if plan.state == _State.ABORTED:
            return plan
        if plan.state not in ALIVE:
            raise NotPossible(plan, "aborted")
        # The rest of a long one is the service's.
        advance.skip_rest(plan)
        if plan.total == plan.done + plan.skipped + plan.failed and not plan.open + plan.awaiting:
            plan.finished_at = sql.clock()
        groups.no_longer_replayed(plan.id)
        return _move(plan, _State.ABORTED, who=who, verb="aborted")


def _move(plan: ReplayPlan, state: ReplayPlan.State, *, who: Who, verb: str) -> ReplayPlan:
    before, plan.state, plan.state_at = plan.state, state, sql.clock()
    plan.state_reason, plan.held = f"{verb.capitalize()} by {who.actor}: {who.reason}"[:1000], ""
    plan.save()
    audit.record(
        f"replay_plan.{verb}", actor=who.actor, object_type="replay_plan", object_id=plan.id, before={"state": before},
        after={"state": plan.state}, reason=who.reason, source=who.source, request_id=who.request_id,
    )  # fmt: skip
    lifecycle.touch_board()
    return plan


def _locked(plan_id: UUID) -> ReplayPlan:
    plan = ReplayPlan.objects.select_for_update().filter(id=plan_id).first()
    if plan is None:
        raise PlanNotFound(str(plan_id))
    return plan
