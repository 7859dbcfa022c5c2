"""Plans as pages, the API and the command line show them. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from uuid import UUID

from django.db.models import Q

from dlq.models import PlanItem, ReplayPlan

PAGE: Final = 50
_State = ReplayPlan.State
_VERBS: Final = {"replay": "replayed", "cancel": "cancelled", "ignore": "ignored"}
WHICH: Final = ("all", "unwell", "waiting", "skipped")


def plan(plan_id: UUID) -> ReplayPlan | None:
    """Return one plan."""
    return ReplayPlan.objects.filter(id=plan_id).first()


def plans(*, types: Collection[str] | None = None, before: UUID | None = None, limit: int = PAGE) -> list[ReplayPlan]:
    """Return plans, newest first; `types`: only those all of whose types are among them."""
    found = ReplayPlan.objects.order_by("-id")
    if before is not None:
        found = found.filter(id__lt=before)
    if types is not None:
        found = found.filter(types__contained_by=sorted(types))
    return list(found[:limit])


def items(plan_id: UUID, *, which: str = "all", after: int = 0, limit: int = 100) -> list[PlanItem]:
    """Return items in the plan's order. `unwell`: skipped, failed, or ended otherwise than confirmed."""
    found = PlanItem.objects.filter(plan_id=plan_id, number__gt=after).order_by("number")
    if which == "unwell":
        found = found.filter(
            Q(state__in=["skipped", "failed"]) | Q(outcome__in=["dead", "expired", "cancelled", "lost"])
        )
    elif which in ("waiting", "skipped"):
        found = found.filter(state=which)
    return list(found[:limit])


def left(found: ReplayPlan) -> int:
    """Return how many items were not acted on so far."""
    return found.total - found.done - found.skipped - found.failed


def eta_seconds(found: ReplayPlan) -> float | None:
    """Return in how many seconds the last item is acted on at the plan's pace; None while it does not go on."""
    if found.state != _State.RUNNING or found.held:
        return None
    return left(found) / found.rate_per_second


def words(found: ReplayPlan) -> str:
    """Sum a plan up: 312 replayed, 309 confirmed, 3 dead again, 5 skipped."""
    verb = _VERBS[found.action]
    if found.dry_run:
        verb = f"would be {verb}"
    counts = [
        (found.done, verb), (found.confirmed, "confirmed"), (found.awaiting, "waiting for their proof"),
        (found.open, "on their way"), (found.dead_again, "dead again"), (found.expired, "expired"),
        (found.cancelled, "cancelled again" if found.action == "cancel" else "cancelled"), (found.lost, "not known"),
        (found.skipped, "skipped"), (found.failed, "failed"), (left(found), "left"),
    ]  # fmt: skip
    return ", ".join(f"{n:,} {word}" for index, (n, word) in enumerate(counts) if n or index == 0)
