"""Carry out plans: the service `replay-plans`. One transaction moves a plan, its items and the jobs one step further.

Killed anywhere, a step happened whole or not at all. Any number of schedulers may run it: a plan that one has locked is
left alone by the others. Following is the same step: how did the replays end, and does the stop rule have its say?
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction

from dlq import facts as reading
from dlq import groups, preflight, sql
from dlq.models import PlanItem, ReplayPlan
from dlq.plans import following, live, step
from dlq.plans.step import PRIORITY
from queues import audit, contracts, lifecycle
from queues.faults import fault
from queues.redaction import redact_text

log = logging.getLogger(__name__)

PLANS_MOST: Final = 50
STEP_MOST: Final = 200
"""Replays in one transaction: its locks are held for a fifth of a second. Half of a step's price is the same however
few items it has, so a quick plan waits until a step is due that is worth it."""
BULK_MOST: Final = 500
WORTH: Final = 25
"""Fewer items than this show that the cap binds, and that the next step would find nothing yet."""
BURST_SECONDS: Final = 2.0
"""After a pause of the service a plan catches up so much, no more."""
SKIP_MOST: Final = 5_000
SEEN_LEAST: Final = 10
"""So many replays must have shown how they go before a share stops the plan."""

_State = ReplayPlan.State
_Action = ReplayPlan.Action

_SKIP_REST: Final = """
UPDATE dlq_planitem SET state = 'skipped', code = 'aborted', at = jobs_clock()
WHERE plan_id = %(plan)s AND number = ANY(ARRAY(
  SELECT number FROM dlq_planitem WHERE plan_id = %(plan)s AND state = 'waiting' ORDER BY number LIMIT %(limit)s))
"""


def run_once() -> bool:
    """Move every plan that is alive; returns whether there is more to do at once."""
    more = False
    for plan_id in _alive():
        try:
            more = advance(plan_id) or more
        except Exception as error:  # one plan that cannot be moved must not hold up all others for ever
            if not connection.is_usable():
                raise
            log.exception("plan %s: this step failed, it is tried again", plan_id)
            words = redact_text(f"Its last step failed: {type(error).__name__}: {error}")[:300].replace("\x00", "")
            ReplayPlan.objects.filter(id=plan_id, state=_State.RUNNING).exclude(held=words).update(held=words)
    return more


def advance(plan_id: UUID) -> bool:
    """Move one plan a step further; returns whether it could go on at once. Nothing when somebody else has it."""
    with transaction.atomic():
        plan = ReplayPlan.objects.select_for_update(skip_locked=True).filter(id=plan_id).first()
        if plan is None:
            return False
        fault("plan.locked")
        before = _seen(plan)
        now = sql.clock()
        # The clock went back: nothing is to stand still until it is where it was.
        plan.paced_at, plan.judged_since = min(plan.paced_at, now), min(plan.judged_since, now)
        following.follow(plan)
        more = False
        if plan.state == _State.RUNNING:
            more = _go_on(plan, now=now)
        elif plan.state == _State.ABORTED:
            more = skip_rest(plan)
        _settle(plan, now=now)
        after = _seen(plan)
        if after != before:
            plan.save()
            # The pace alone is nothing that a page shows.
            if after | {"paced_at": None} != before | {"paced_at": None}:
                lifecycle.touch_board()
        fault("plan.stepped")
    fault("plan.committed")
    return more


def _alive() -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(
            # In no order that lasts: plans that wait long for their proofs must not keep the others out.
            "(SELECT id FROM dlq_replayplan WHERE state = 'running' ORDER BY random() LIMIT %s) UNION ALL"
            " (SELECT id FROM dlq_replayplan WHERE state = 'following'"
            " OR (state IN ('paused', 'stopped') AND open + awaiting > 0)"
            " OR (state = 'aborted' AND finished_at IS NULL) ORDER BY random() LIMIT %s)",
            [PLANS_MOST, PLANS_MOST],
        )
        return [row[0] for row in cursor.fetchall()]


def _seen(plan: ReplayPlan) -> dict[str, Any]:
    return {f.attname: getattr(plan, f.attname) for f in plan._meta.concrete_fields}


def _go_on(plan: ReplayPlan, *, now: dt.datetime) -> bool:
    stop = _stop_rule(plan)
    if stop:
        _stop(plan, stop, now=now)
        return False
    plan.held = _held(plan)
    if plan.held:
        # The time that it was held for is not caught up.
        plan.paced_at = now
        return False
    plan.held = _all_failing(plan)
    allowed = _allowance(plan, now=now)
    if allowed <= 0:
        return False
    items = list(PlanItem.objects.filter(plan_id=plan.id, state="waiting").order_by("number")[:allowed])
    if not items:
        return False
    # Whoever resumes a plan knows more than the last ten minutes do; the stop rule looks after that.
    if not plan.done and plan.judged_since <= plan.created_at and (stop := _fails_already(plan)):
        _stop(plan, stop, now=now)
        return False
    step.carry_out(plan, items)
    rest = (now - plan.paced_at).total_seconds() - len(items) / plan.rate_per_second
    rest = min(max(rest, 0.0), BURST_SECONDS)
    plan.paced_at = now - dt.timedelta(seconds=rest)
    return len(items) >= WORTH and rest * plan.rate_per_second >= _most(plan) / 2


def skip_rest(plan: ReplayPlan) -> bool:
    """Skip what an aborted plan has not begun, some thousands at a time; returns whether there is more."""
    with connection.cursor() as cursor:
        cursor.execute(_SKIP_REST, {"plan": plan.id, "limit": SKIP_MOST})
        n = cursor.rowcount
    if n:
        plan.skipped += n
        plan.why = {**plan.why, "aborted": plan.why.get("aborted", 0) + n}
    return bool(n == SKIP_MOST)


def _allowance(plan: ReplayPlan, *, now: dt.datetime) -> int:
    """Return how many items the pace and the cap allow now."""
    # One item every so many seconds may be slower than the burst is long.
    most = max(BURST_SECONDS, 1 / plan.rate_per_second)
    passed = min(max((now - plan.paced_at).total_seconds(), 0.0), most)
    due = int(passed * plan.rate_per_second + 1e-6)
    if plan.action != _Action.REPLAY or plan.dry_run:
        return min(due, _most(plan))
    return min(due, _most(plan), plan.concurrency - plan.open)


def _most(plan: ReplayPlan) -> int:
    """Return how many items one step takes."""
    return BULK_MOST if plan.action != _Action.REPLAY or plan.dry_run else STEP_MOST


def _stop_rule(plan: ReplayPlan) -> str:
    """Return why the plan stops, if its replays fail again more often than it allows."""
    if plan.action != _Action.REPLAY or plan.dry_run:
        return ""
    bad = plan.judged_bad + plan.failing
    seen = bad + plan.judged_ok
    limit = plan.stop_on_failure_ratio
    # No more than the cap are begun before the first ends: a small cap must not keep the rule from seeing enough.
    least = 1 if limit == 0 else min(SEEN_LEAST, plan.total, plan.concurrency)
    if not bad or limit >= 1 or seen < least or bad / seen <= limit:
        return ""
    words = f"{bad:,} of the first {seen:,} replays failed again ({bad / seen:.0%}, the limit is {limit:.0%})"
    error = following.newest_error(plan)
    return f"{words}: {error}" if error else words


def _fails_already(plan: ReplayPlan) -> str:
    """Return why nothing should be begun: what the replays depend on fails right now, by everybody's runs."""
    if plan.action != _Action.REPLAY or plan.dry_run or plan.forced:
        return ""
    for found in reading.health(_types_left(plan)).values():
        check = preflight.dependency(found, now=sql.clock())
        if check.result == "fail":
            return f"Nothing was replayed: {check.title} ({check.evidence})"
    return ""


def _held(plan: ReplayPlan) -> str:
    """Return why the plan waits: for a type that is paused, deferred or held, or for live work that is not taken."""
    if plan.action != _Action.REPLAY or plan.dry_run:
        return ""
    current = contracts.all_current()
    left = [current[name] for name in _types_left(plan) if name in current]
    waiting = min((one for one in left if one.on_hold), key=lambda one: one.name, default=None)
    if waiting is not None:
        return f"{waiting.name} is {'paused' if waiting.paused else 'deferred'}"[:300]
    # One that is half open needs jobs that try it, and these may be the only ones.
    opened = sorted(one.dependency for one in left if one.breaker == "open")
    if opened:
        return f"The breaker of {opened[0]} is open"[:300]
    return live.behind({one.queue for one in left}, slower_than=PRIORITY)


def _all_failing(plan: ReplayPlan) -> str:
    """Return why nothing is begun, where all replays that may be on their way wait for another attempt."""
    if plan.open < plan.concurrency:
        return ""
    n = PlanItem.objects.filter(plan_id=plan.id, outcome="open", failing=True).count()
    return f"All {n:,} replays on their way have failed and wait for their next attempt" if n >= plan.open else ""


def _types_left(plan: ReplayPlan) -> list[str]:
    """Return the types of the items that come next."""
    rows = PlanItem.objects.filter(plan_id=plan.id, state="waiting").order_by("number").values_list("type", flat=True)
    return sorted(set(rows[:STEP_MOST]))


def _stop(plan: ReplayPlan, why: str, *, now: dt.datetime) -> None:
    plan.state, plan.state_at, plan.state_reason, plan.held = _State.STOPPED, now, why[:1000], ""
    _tell(plan, "stopped", why)


def _settle(plan: ReplayPlan, *, now: dt.datetime) -> None:
    """End the plan when nothing of it is left, or wait for how its replays end."""
    left = plan.total - plan.done - plan.skipped - plan.failed
    followed = plan.open + plan.awaiting
    if plan.state == _State.RUNNING and not left:
        plan.state, plan.state_at, plan.held = _State.FOLLOWING, now, ""
    if plan.state == _State.FOLLOWING and not followed:
        plan.state, plan.state_at, plan.finished_at = _State.FINISHED, now, now
        _tell(plan, "finished", "")
        groups.no_longer_replayed(plan.id)
    elif plan.state == _State.ABORTED and not left and not followed and plan.finished_at is None:
        plan.finished_at = now


def _tell(plan: ReplayPlan, verb: str, why: str) -> None:
    audit.record(
        f"replay_plan.{verb}", actor="system", object_type="replay_plan", object_id=plan.id,
        after={"state": plan.state, "done": plan.done, "skipped": plan.skipped, "failed": plan.failed,
               "confirmed": plan.confirmed, "dead_again": plan.dead_again},
        reason=why, source="command",
    )  # fmt: skip
