"""The calls on replay plans: make one, list them, look at one and its items, pause, resume, abort.

Not here: cancelling in bulk (`jobsboard.api.cancellations`), what a plan does (`dlq.plans`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from django.http import HttpRequest, HttpResponse
from ninja import Router

from dlq.models import ReplayPlan
from dlq.plans import create, people, read
from dlq.plans.create import PlanRequest
from dlq.replaying import Who
from jobsboard.api import envelope, listing, plans, repair_schemas, schemas
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem
from queues import contracts

router = Router()

_TEXT: Final = {"type": "string"}
_LIMIT: Final = {
    "type": "integer", "minimum": 1, "maximum": listing.LIMIT_MAX, "default": listing.LIMIT_DEFAULT,
}  # fmt: skip
_SCOPE: Final = ["replays"]


class Replays(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /replays`."""

    reason: str
    filter: plans.Filter | None = None
    ids: list[str] | None = None
    as_of: Any = None
    expected_count: plans.Count | None = None
    rate_per_second: float = create.RATE
    concurrency: int = create.CONCURRENCY
    stop_on_failure_ratio: float = create.STOP_RATIO
    order: Literal["oldest", "newest"] = "oldest"
    dry_run: bool = False


class Page(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of the list, strictly."""

    limit: int = listing.LIMIT_DEFAULT
    cursor: str | None = None


class Items(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of the items, strictly."""

    which: str = "all"
    after: str = "0"
    limit: int = listing.LIMIT_DEFAULT


@router.post(
    "/replays",
    response={202: repair_schemas.Plan, 200: repair_schemas.Plan, **schemas.ERRORS},
    operation_id="createReplays",
    openapi_extra=schemas.body(repair_schemas.Replays)
    | schemas.header("Idempotency-Key", {"type": "string", "pattern": schemas.KEY}),
)
def create_replays(request: HttpRequest) -> HttpResponse:
    """Make a plan that replays many jobs at a pace; what speaks against one of them leaves that one out.

    It is about the jobs that were there at `as_of`, and of these `expected_count`: another number is 409.
    """
    key = key_of(request, scope="dlq:replay")
    body = envelope.read(envelope.read_body(request, limit=plans.BODY_MAX), Replays)
    why = envelope.why(request, body.reason, key=key)
    chosen = plans.choose(body.filter, body.ids, body.as_of, key=key)
    wanted = PlanRequest(
        action=ReplayPlan.Action.REPLAY.value,
        selection=chosen.selection,
        types=chosen.types,
        who=Who(**why),
        as_of=chosen.as_of,
        expected_count=body.expected_count,
        rate_per_second=body.rate_per_second,
        concurrency=body.concurrency,
        stop_on_failure_ratio=body.stop_on_failure_ratio,
        newest_first=body.order == "newest",
        dry_run=body.dry_run,
        idempotency_key=plans.idempotency_key(request),
    )
    return plans.make(request, wanted)


@router.get(
    "/replays",
    response={200: repair_schemas.PlanPage, **schemas.ERRORS},
    operation_id="listReplays",
    openapi_extra=schemas.query(limit=_LIMIT, cursor=_TEXT),
)
def list_replays(request: HttpRequest) -> HttpResponse:
    """Return plans, newest first; of a key for some types only those that are about no others."""
    key = key_of(request, scope="dlq:replay")
    wanted = listing.read_query(request.GET, Page)
    listing.check_limit(wanted.limit)
    before = None if wanted.cursor is None else listing.open_cursor(wanted.cursor, scope=_SCOPE)
    types = None if key.uses_every_type else [name for name in contracts.all_current() if key.may_use(name)]
    with bounded():
        found = read.plans(types=types, before=before, limit=wanted.limit + 1)
    more = len(found) > wanted.limit
    found = found[: wanted.limit]
    mark = listing.seal(found[-1].id, scope=_SCOPE) if more else None
    return envelope.answer({"items": [plans.as_json(plan) for plan in found], "next": mark})


@router.get("/replays/{plan_id}", response={200: repair_schemas.Plan, **schemas.ERRORS}, operation_id="getReplays")
def get_replays(request: HttpRequest, plan_id: str) -> HttpResponse:
    """Return one plan and how far it is."""
    with bounded():
        plan, _ = _find(request, plan_id)
    return envelope.answer(plans.as_json(plan))


@router.get(
    "/replays/{plan_id}/items",
    response={200: repair_schemas.PlanItemPage, **schemas.ERRORS},
    operation_id="listReplayItems",
    openapi_extra=schemas.query(
        which={"type": "string", "enum": list(read.WHICH), "default": "all"},
        after={"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0},
        limit=_LIMIT,
    ),
)
def list_items(request: HttpRequest, plan_id: str) -> HttpResponse:
    """Return the jobs of a plan in its order, those after a number."""
    wanted = listing.read_query(request.GET, Items)
    listing.check_limit(wanted.limit)
    if wanted.which not in read.WHICH:
        raise listing.bad("which", f"is one of {', '.join(read.WHICH)}")
    if not (wanted.after.isascii() and wanted.after.isdigit() and len(wanted.after) < 10):
        raise listing.bad("after", "is the number of an item, or 0")
    with bounded():
        plan, _ = _find(request, plan_id)
        found = read.items(plan.id, which=wanted.which, after=int(wanted.after), limit=wanted.limit + 1)
    more = len(found) > wanted.limit
    found = found[: wanted.limit]
    following = found[-1].number if more else None
    return envelope.answer({"items": [plans.item_as_json(item) for item in found], "next": following})


@router.post(
    "/replays/{plan_id}/pause",
    response={200: repair_schemas.Plan, **schemas.ERRORS},
    operation_id="pauseReplays",
    openapi_extra=schemas.body(schemas.Reason),
)
def pause_replays(request: HttpRequest, plan_id: str) -> HttpResponse:
    """Hold a running plan; what it has replayed goes on."""
    return _steer(request, plan_id, people.pause)


@router.post(
    "/replays/{plan_id}/resume",
    response={200: repair_schemas.Plan, **schemas.ERRORS},
    operation_id="resumeReplays",
    openapi_extra=schemas.body(schemas.Reason),
)
def resume_replays(request: HttpRequest, plan_id: str) -> HttpResponse:
    """Let a paused or stopped plan go on; its stop rule begins afresh."""
    return _steer(request, plan_id, people.resume)


@router.post(
    "/replays/{plan_id}/abort",
    response={200: repair_schemas.Plan, **schemas.ERRORS},
    operation_id="abortReplays",
    openapi_extra=schemas.body(schemas.Reason),
)
def abort_replays(request: HttpRequest, plan_id: str) -> HttpResponse:
    """End a plan; what it has not begun stays as it is."""
    return _steer(request, plan_id, people.abort)


def _steer(request: HttpRequest, plan_id: str, act: Callable[..., ReplayPlan]) -> HttpResponse:
    with bounded():
        plan, _ = _find(request, plan_id)
    key = plans.may_steer(request, plan)
    if act is people.resume and plan.forced:
        raise Problem("not_possible", "Only an admin resumes a plan that is forced, on the board.", state=plan.state)
    why = envelope.read_why(request, key=key)
    with bounded():
        try:
            moved = act(plan.id, who=Who(**why))
        except people.PlanNotFound:
            raise _unknown() from None
        except people.NotPossible as refused:
            raise Problem("not_possible", f"{str(refused).capitalize()}.", state=refused.plan.state) from None
    return envelope.answer(plans.as_json(moved))


def _find(request: HttpRequest, text: str) -> tuple[ReplayPlan, Key]:
    """Return a plan that the key may see: all of its types are the key's.

    A key that has jobs:write alone sees the cancellations of waiting jobs that it made itself. Raises: Problem.
    """
    key = plans.writer(request)
    plan_id = listing.read_id(text)
    plan = None if plan_id is None else read.plan(plan_id)
    if plan is None or not all(key.may_use(name) for name in plan.types):
        raise _unknown()
    if "dlq:replay" not in key.scopes and not _is_own(plan, key):
        raise _unknown()
    return plan, key


def _is_own(plan: ReplayPlan, key: Key) -> bool:
    return plans.needs(plan.action, plan.selection) == ("jobs:write",) and plan.created_by == key.actor


def _unknown() -> Problem:
    return Problem("unknown_plan", "There is no plan of this id.", status=404)
