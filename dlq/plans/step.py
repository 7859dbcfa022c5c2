"""One step of a plan: its next items are judged, acted on, written to the audit log and ended, in one transaction.

Not here: how many, how fast and whether at all (`advance`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import msgspec
from django.db import DataError, IntegrityError, InternalError, connection, transaction

from dlq import facts as reading
from dlq import preflight
from dlq.facts import Facts
from dlq.models import PlanItem, ReplayPlan
from dlq.plans.selection import WAITING
from dlq.preflight import Check
from queues import audit, lifecycle
from queues.models import Job
from queues.redaction import redact_text
from queues.states import OPEN, JobState, Reason, Resolution

log = logging.getLogger(__name__)

TRIES_MOST: Final = 240
"""An item whose row somebody else holds is tried again so often: for a minute."""
PRIORITY: Final = -100
"""Replays of a plan come after all live work of their type."""

_Action = ReplayPlan.Action

_ENDED: Final = """
UPDATE dlq_planitem i SET state = e.state, code = e.code, detail = e.detail, child = e.child, outcome = e.outcome,
  tries = i.tries + 1, at = jobs_clock()
FROM json_to_recordset(%(ends)s::json) AS e (number integer, state text, code text, detail text, child uuid,
  outcome text)
WHERE i.plan_id = %(plan)s AND i.number = e.number AND i.state = 'waiting'
"""


@dataclass(frozen=True, kw_only=True)
class _End:
    """What became of an item in this step; `state` waiting: it is to be tried again."""

    number: int
    state: str
    code: str = ""
    detail: str = ""
    child: UUID | None = None
    outcome: str = ""


@dataclass
class _Step:
    """One item on its way through a step."""

    item: PlanItem
    facts: Facts | None
    held: bool = False
    end: _End | None = None
    checks: Sequence[Check] = field(default_factory=list)


def carry_out(plan: ReplayPlan, items: Sequence[PlanItem]) -> None:
    """Act on the next items of a plan that the caller has locked, and keep its counts in step."""
    # Locked in the order of all batches, so that what is judged is what is acted on; a row that somebody else holds is
    # looked at in the next step.
    ids = [item.job_id for item in items]
    jobs = list(Job.objects.select_for_update(skip_locked=True).filter(id__in=ids).order_by("id"))
    found = reading.gather(jobs)
    missing = set(ids) - found.keys()
    held = set(Job.objects.filter(id__in=missing).values_list("id", flat=True)) if missing else set()
    steps = [_Step(item=item, facts=found.get(item.job_id), held=item.job_id in held) for item in items]
    for step in steps:
        step.end = _skipped(plan, step)
    ready = [step for step in steps if step.end is None]
    act = {_Action.REPLAY: _replay, _Action.CANCEL: _cancel, _Action.IGNORE: _ignore}[_Action(plan.action)]
    if plan.dry_run:
        for step in ready:
            verdict = preflight.Preflight(job_id=step.item.job_id, checks=step.checks, at=plan.created_at).verdict
            step.end = _End(number=step.item.number, state="done", code="safe" if verdict == "safe" else "unknown")
    elif ready:
        act(plan, ready)
    _write(plan, [step.end for step in steps if step.end is not None])


def _skipped(plan: ReplayPlan, step: _Step) -> _End | None:
    """Return the end of an item that is not acted on: gone, changed since it was chosen, or unsafe to replay."""
    number = step.item.number

    def skipped(code: str, words: str) -> _End:
        return _End(number=number, state="skipped", code=code, detail=words[:300])

    if step.facts is None and not step.held:
        return skipped("gone", "The job is not kept any more")
    if step.item.tries >= TRIES_MOST:
        return _End(
            number=number, state="failed", code="not_replayed", detail="Its row was held by others for too long"
        )
    if step.facts is None:
        return _End(number=number, state="waiting")
    job = step.facts.job
    if plan.action != _Action.REPLAY:
        return _not_closable(plan, job, number, skipped)
    # The dependency speaks for the whole plan (`_fails_already` and the stop rule), not for one item.
    try:
        checks = [check for check in preflight.judge(step.facts).checks if check.name != "dependency"]
    except Exception as error:  # one job that cannot be judged must not hold up all others for ever
        return _broken(number, error)
    step.checks = checks
    against = [check for check in checks if check.result == "fail" and (check.final or not plan.forced)]
    if not against:
        return None
    first = min(against, key=lambda check: not check.final)
    code = "changed" if first.name == "open" else first.name
    return skipped(code, f"{first.title}: {first.evidence}")


def _asked_to_stop(number: int) -> _End:
    """Return the end of an item whose job runs: it stops when its handler looks, and does not run again."""
    return _End(number=number, state="done", code="asked_to_stop", detail="It runs, and was asked to stop")


def _not_closable(plan: ReplayPlan, job: Job, number: int, skipped: Any) -> _End | None:
    if job.state == JobState.DEAD:
        if plan.selection.get("state") == WAITING:
            end: _End = skipped("changed", "It died before it was cancelled")
            return end
        if job.resolution == Resolution.OPEN:
            return None
        done = f"It was replayed as {job.replayed_by}" if job.replayed_by else f"It was {job.resolution}"
        end = skipped("changed", f"{done} by {job.resolved_by}")
        return end
    if plan.action == _Action.CANCEL and job.state in OPEN:
        # Also one that a worker has begun since it was chosen: left alone, it would run again after this run.
        return _asked_to_stop(number) if job.cancel_requested else None
    end = skipped("not_open", f"The job is {job.state.replace('_', ' ')}")
    return end


def _replay(plan: ReplayPlan, steps: Sequence[_Step]) -> None:
    children = _replay_many(plan, steps)
    for step in steps:
        if step.end is not None:
            continue
        child = children.get(step.item.job_id)
        number = step.item.number
        # One that did not come back is held by somebody, or was changed this very moment: the next step knows.
        step.end = (
            _End(number=number, state="waiting")
            if child is None
            else _End(number=number, state="done", child=child, outcome="open")
        )
    _record(plan, "job.replayed", {job_id: {"resolution": "replayed", "replayed_by": str(child)}
                                   for job_id, child in children.items()}, before={"resolution": "open"})  # fmt: skip


def _replay_many(plan: ReplayPlan, steps: Sequence[_Step]) -> dict[UUID, UUID]:
    """Replay jobs. Shape: job → child. Where the statement fails, each by itself: one row must not stop all others."""
    ids = [step.item.job_id for step in steps]
    try:
        with transaction.atomic():
            return lifecycle.replay_many(ids, by=plan.created_by, priority=PRIORITY)
    except (DataError, IntegrityError, InternalError) as error:
        log.warning("plan %s: replaying %d jobs failed, one by one now: %s", plan.id, len(ids), error)
    children: dict[UUID, UUID] = {}
    for step in steps:
        try:
            with transaction.atomic():
                children |= lifecycle.replay_many([step.item.job_id], by=plan.created_by, priority=PRIORITY)
        except (DataError, IntegrityError, InternalError) as error:
            step.end = _broken(step.item.number, error)
    return children


def _broken(number: int, error: Exception) -> _End:
    detail = redact_text(f"{type(error).__name__}: {error}")[:300].replace("\x00", "")
    return _End(number=number, state="failed", code="not_replayed", detail=detail)


def _cancel(plan: ReplayPlan, steps: Sequence[_Step]) -> None:
    dead = [step for step in steps if step.facts is not None and step.facts.job.state == JobState.DEAD]
    _close(plan, dead, Resolution.CANCELLED, "dead_letter.cancelled")
    rest = [step for step in steps if step.end is None]
    if not rest:
        return
    # As for one job: whoever comes by the API is the producer.
    reason = Reason.PRODUCER if plan.source == "api" else Reason.OPERATOR
    done = {one.id: one for one in lifecycle.cancel([step.item.job_id for step in rest], reason=reason)}
    for step in rest:
        one, number = done.get(step.item.job_id), step.item.number
        if one is not None and one.state == JobState.PROCESSING:
            step.end = _asked_to_stop(number)
        else:
            step.end = _End(number=number, state="done" if one else "waiting")
    _record(plan, "job.cancelled", {job_id: {"state": one.state.value, "cancel_requested": True}
                                    for job_id, one in done.items()}, before={"cancel_requested": False})  # fmt: skip


def _ignore(plan: ReplayPlan, steps: Sequence[_Step]) -> None:
    _close(plan, steps, Resolution.IGNORED, "dead_letter.ignored")


def _close(plan: ReplayPlan, steps: Sequence[_Step], resolution: Resolution, action: str) -> None:
    if not steps:
        return
    ids = [step.item.job_id for step in steps]
    closed = lifecycle.close_dead_letters(ids, resolution=resolution.value, by=plan.created_by)
    for step in steps:
        step.end = _End(number=step.item.number, state="done" if step.item.job_id in closed else "waiting")
    _record(plan, action, dict.fromkeys(closed, {"resolution": resolution.value}), before={"resolution": "open"})


def _record(plan: ReplayPlan, action: str, changed: Mapping[UUID, Any], *, before: Any) -> None:
    """Write an entry for each job, as if somebody had pressed the button on each."""
    audit.record_each(
        action, {job_id: {**after, "plan": str(plan.id)} for job_id, after in changed.items()},
        actor=plan.created_by, object_type="job", before=before, reason=plan.reason, source=plan.source,
        request_id=plan.request_id,
    )  # fmt: skip


def _write(plan: ReplayPlan, ends: Sequence[_End]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_ENDED, {"plan": plan.id, "ends": msgspec.json.encode(ends).decode()})
    counts = Counter(end.state for end in ends)
    plan.done += counts["done"]
    plan.skipped += counts["skipped"]
    plan.failed += counts["failed"]
    plan.open += sum(end.outcome == "open" for end in ends)
    why = Counter(plan.why)
    why.update(end.code for end in ends if end.code)
    plan.why = dict(why)
