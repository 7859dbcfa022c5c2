"""Make a plan: count, hold against what was expected, freeze the items, all in one transaction."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.db import IntegrityError, connection, transaction

from dlq import groups
from dlq.models import ReplayPlan
from dlq.plans import selection as choosing
from dlq.plans.selection import MOST, Selection, SelectionInvalid
from dlq.replaying import Who
from queues import audit, lifecycle
from queues.actions import REASON_CHARACTERS
from queues.faults import fault

RATE: Final = 50.0
"""Items a second, unless somebody says otherwise."""
RATE_MOST: Final = 500.0
BULK_RATE: Final = 2_000.0
"""Of what runs nothing: cancel, ignore, dry runs."""
CONCURRENCY: Final = 100
CONCURRENCY_MOST: Final = 1_000
STOP_RATIO: Final = 0.5


class CountChanged(Exception):
    """Another number of jobs is chosen than was expected."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"{found:,} jobs are selected now, not {expected:,}")
        self.expected = expected
        self.found = found


class TooMany(Exception):
    """More jobs are chosen than one plan takes."""

    def __init__(self) -> None:
        super().__init__(f"more than {MOST:,} jobs are selected; narrow the filter and make several plans")


class NothingSelected(Exception):
    """No job is chosen. `left_out`: so many ids were named that may not or cannot be used."""

    def __init__(self, left_out: int) -> None:
        super().__init__("no job is selected" + (f"; {left_out:,} ids are unknown" if left_out else ""))
        self.left_out = left_out


class KeyReused(Exception):
    """The idempotency key made another plan."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A plan as somebody asks for it. `types`: those that the caller may use. Units: items a second.

    `expected_count`: what the caller saw; None only with ids. `forced`: also what something speaks against.
    """

    action: str
    selection: Selection
    types: Sequence[str]
    who: Who
    as_of: dt.datetime | None = None
    expected_count: int | None = None
    rate_per_second: float = RATE
    concurrency: int = CONCURRENCY
    stop_on_failure_ratio: float = STOP_RATIO
    newest_first: bool = False
    dry_run: bool = False
    forced: bool = False
    idempotency_key: str | None = None

    def check(self) -> None:
        """Refuse what means nothing. Raises: SelectionInvalid."""
        self.selection.check(action=self.action)
        if self.action not in ReplayPlan.Action.values:
            raise SelectionInvalid("action", f"is one of {', '.join(ReplayPlan.Action.values)}")
        if not self.who.reason.strip():
            raise SelectionInvalid("reason", "says why; it is written to the audit log")
        if len(self.who.reason) > REASON_CHARACTERS:
            raise SelectionInvalid("reason", f"has at most {REASON_CHARACTERS:,} characters")
        if self.expected_count is None and self.selection.ids is None:
            raise SelectionInvalid("expected_count", "says how many jobs you saw")
        if not 0 < self.rate_per_second <= RATE_MOST:
            raise SelectionInvalid("rate_per_second", f"is above 0 and at most {RATE_MOST:g}")
        if not 1 <= self.concurrency <= CONCURRENCY_MOST:
            raise SelectionInvalid("concurrency", f"is from 1 to {CONCURRENCY_MOST:,}")
        if not 0 <= self.stop_on_failure_ratio <= 1:
            raise SelectionInvalid("stop_on_failure_ratio", "is from 0 (the first failure stops it) to 1 (never)")

    @property
    def hash(self) -> str:
        """Tell this request from another one under the same idempotency key."""
        ids = sorted(str(one) for one in self.selection.ids or ())
        words = [self.action, self.selection.as_json(), ids, self.who.reason, self.expected_count, self.dry_run,
                 self.rate_per_second, self.concurrency, self.stop_on_failure_ratio, self.newest_first]  # fmt: skip
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def create(request: PlanRequest) -> tuple[ReplayPlan, bool]:
    """Make a plan, or find the one that this idempotency key made. Shape: the plan, whether it is new.

    Raises: SelectionInvalid, CountChanged, TooMany, NothingSelected, KeyReused.
    """
    request.check()
    known = _known(request)
    if known is not None:
        return known, False
    try:
        return _create(request), True
    except IntegrityError:
        # The same request came twice at once, and the other one was first.
        known = _known(request)
        if known is None:
            raise
        return known, False


def _create(request: PlanRequest) -> ReplayPlan:
    with transaction.atomic():
        now = choosing.now()
        as_of = min(request.as_of or now, now)
        plan = _row(request, now=now, as_of=as_of)
        total = choosing.freeze(
            request.selection, plan_id=plan.id, types=request.types, as_of=as_of, newest_first=request.newest_first
        )
        fault("plan.frozen")
        _hold_against(request, plan, total)
        plan.total = total
        plan.save(force_insert=True)
        audit.record(
            "replay_plan.created", actor=request.who.actor, object_type="replay_plan", object_id=plan.id,
            after={"action": plan.action, "selection": plan.selection, "total": total, "dry_run": plan.dry_run,
                   "rate_per_second": plan.rate_per_second, "concurrency": plan.concurrency, "forced": plan.forced,
                   "stop_on_failure_ratio": plan.stop_on_failure_ratio},
            reason=request.who.reason, source=request.who.source, request_id=request.who.request_id,
        )  # fmt: skip
        if plan.action == ReplayPlan.Action.REPLAY and not plan.dry_run:
            groups.being_replayed(plan.id)
        lifecycle.touch_board()
    return plan


def _known(request: PlanRequest) -> ReplayPlan | None:
    """Return the plan of this key. Raises: KeyReused."""
    if request.idempotency_key is None:
        return None
    by = request.who.actor[:150]
    known = ReplayPlan.objects.filter(created_by=by, idempotency_key=request.idempotency_key).first()
    if known is not None and known.request_hash != request.hash:
        raise KeyReused("this idempotency key made another plan")
    return known


def _hold_against(request: PlanRequest, plan: ReplayPlan, total: int) -> None:
    ids = request.selection.ids
    plan.left_out = len(set(ids)) - total if ids is not None else 0
    if total > MOST:
        raise TooMany
    if total == 0:
        raise NothingSelected(plan.left_out)
    expected, found = request.expected_count, total if ids is None else len(set(ids))
    # What waits is taken by workers all the time: fewer than were seen are what is left of these, more are others.
    fewer = ids is None and request.selection.state == choosing.WAITING and expected is not None and found < expected
    if expected is not None and expected != found and not fewer:
        raise CountChanged(expected, total)


def _row(request: PlanRequest, *, now: dt.datetime, as_of: dt.datetime) -> ReplayPlan:
    slow = request.action == ReplayPlan.Action.REPLAY and not request.dry_run
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_uuid7()")
        plan_id = cursor.fetchone()[0]
    return ReplayPlan(
        id=plan_id, action=request.action, state=ReplayPlan.State.RUNNING, state_at=now,
        selection=request.selection.as_json(), as_of=as_of, types=sorted(request.types), reason=request.who.reason,
        created_by=request.who.actor[:150], source=request.who.source, request_id=request.who.request_id[:64],
        idempotency_key=request.idempotency_key, request_hash=request.hash, created_at=now, dry_run=request.dry_run,
        forced=request.forced, rate_per_second=request.rate_per_second if slow else BULK_RATE,
        concurrency=request.concurrency, stop_on_failure_ratio=request.stop_on_failure_ratio,
        order=ReplayPlan.Order.NEWEST if request.newest_first else ReplayPlan.Order.OLDEST, paced_at=now,
        judged_since=now, total=0,
    )  # fmt: skip


__all__ = [
    "BULK_RATE", "CONCURRENCY", "CONCURRENCY_MOST", "RATE", "RATE_MOST", "STOP_RATIO", "CountChanged", "KeyReused",
    "NothingSelected", "PlanRequest", "SelectionInvalid", "TooMany", "create",
]  # fmt: skip
