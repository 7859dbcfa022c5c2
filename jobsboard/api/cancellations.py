"""Cancelling or ignoring many jobs at once: the call makes a plan, which `jobsboard.api.replays` shows and steers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from django.http import HttpRequest, HttpResponse
from ninja import Router

from dlq.plans.create import PlanRequest
from dlq.replaying import Who
from jobsboard.api import envelope, plans, repair_schemas, schemas
from jobsboard.api.access import key_of
from jobsboard.api.keys import Key

router = Router()


class Cancellations(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /cancellations`."""

    reason: str
    filter: plans.Filter | None = None
    ids: list[str] | None = None
    as_of: Any = None
    expected_count: plans.Count | None = None
    action: Literal["cancel", "ignore"] = "cancel"
    dry_run: bool = False


@router.post(
    "/cancellations",
    response={202: repair_schemas.Plan, 200: repair_schemas.Plan, **schemas.ERRORS},
    operation_id="createCancellations",
    openapi_extra=schemas.body(repair_schemas.Cancellations)
    | schemas.header("Idempotency-Key", {"type": "string", "pattern": schemas.KEY}),
)
def create_cancellations(request: HttpRequest) -> HttpResponse:
    """Make a plan that cancels waiting jobs, or resolves dead letters without running them again."""
    # Before the body is read: a key with neither scope learns nothing about it.
    plans.writer(request)
    body = envelope.read(envelope.read_body(request, limit=plans.BODY_MAX), Cancellations)
    key = _allowed(request, body)
    why = envelope.why(request, body.reason, key=key)
    chosen = plans.choose(body.filter, body.ids, body.as_of, key=key)
    wanted = PlanRequest(
        action=body.action,
        selection=chosen.selection,
        types=chosen.types,
        who=Who(**why),
        as_of=chosen.as_of,
        expected_count=body.expected_count,
        dry_run=body.dry_run,
        idempotency_key=plans.idempotency_key(request),
    )
    return plans.make(request, wanted)


def _allowed(request: HttpRequest, body: Cancellations) -> Key:
    """Return the key; waiting jobs need jobs:write, dead letters dlq:replay, ids to be cancelled both.

    Raises: Problem 403.
    """
    chosen = {"ids": len(body.ids)} if body.ids is not None else {"state": body.filter.state if body.filter else ""}
    return [key_of(request, scope=scope) for scope in plans.needs(body.action, chosen)][-1]
