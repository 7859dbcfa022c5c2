"""The calls on failure groups: list, look at one, ignore, resolve, reopen.

Not here: what a group is and how it comes back (`dlq.groups`), the replay of all of one (`jobsboard.api.replays`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from ninja import Router

from dlq import groups
from dlq.groups import Cursor, GroupFilter, GroupNotFound, GroupRow
from dlq.replaying import Who
from jobsboard.api import envelope, job_json, listing, repair_schemas, schemas, times
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem
from queues import contracts
from queues.redaction import redact_text
from queues.states import DEAD_REASONS

router = Router()

_TEXT: Final = {"type": "string"}
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of the list, strictly."""

    type: str | None = None
    tier: Literal[1, 2, 3] | None = None
    reason: str | None = None
    state: str = "open"
    limit: int = listing.LIMIT_DEFAULT
    cursor: str | None = None


class Ignore(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an ignore."""

    reason: str
    # Any: a number or an object here is a bad time, said so by the reader of times.
    until: Any = None


@router.get(
    "/dead-letter-groups",
    response={200: repair_schemas.GroupPage, **schemas.ERRORS},
    operation_id="listDeadLetterGroups",
    openapi_extra=schemas.query(
        type=_TEXT,
        tier={"type": "integer", "enum": [1, 2, 3]},
        reason={"type": "string", "enum": list(DEAD_REASONS)},
        state={"type": "string", "enum": list(groups.STATES), "default": "open"},
        limit={"type": "integer", "minimum": 1, "maximum": listing.LIMIT_MAX, "default": listing.LIMIT_DEFAULT},
        cursor=_TEXT,
    ),
)
def list_groups(request: HttpRequest) -> HttpResponse:
    """Return failures with unresolved dead letters, or those in another state; tier 1 first, then the newest death."""
    key = key_of(request, scope="dlq:read")
    wanted = _read_filter(request, key=key)
    scope = ["groups", wanted.type, wanted.tier, wanted.reason, wanted.state]
    after = None if wanted.cursor is None else _place(listing.open_cursor(wanted.cursor, scope=scope))
    chosen = GroupFilter(
        types=[name for name in contracts.all_current() if key.may_use(name)],
        type=wanted.type,
        tier=wanted.tier,
        reason=wanted.reason,
        state=wanted.state,
    )
    with bounded():
        page = groups.groups(chosen, after=after, limit=wanted.limit)
    mark = None if page.older is None else listing.seal(_packed(page.older), scope=scope)
    return envelope.answer({"items": [_as_json(row) for row in page.rows], "next": mark})


@router.get(
    "/dead-letter-groups/{group_id}",
    response={200: repair_schemas.Group, **schemas.ERRORS},
    operation_id="getDeadLetterGroup",
)
def get_group(request: HttpRequest, group_id: str) -> HttpResponse:
    """Return one failure group."""
    key = key_of(request, scope="dlq:read")
    with bounded():
        row = _find(group_id, key=key)
    return envelope.answer(_as_json(row))


@router.post(
    "/dead-letter-groups/{group_id}/ignore",
    response={200: repair_schemas.Group, **schemas.ERRORS},
    operation_id="ignoreDeadLetterGroup",
    openapi_extra=schemas.body(repair_schemas.IgnoreGroup),
)
def ignore_group(request: HttpRequest, group_id: str) -> HttpResponse:
    """Set a failure aside, for good or until a time. Its dead letters stay as they are."""
    key = key_of(request, scope="dlq:replay")
    found = envelope.read(envelope.read_body(request, limit=envelope.ONE_MAX), Ignore)
    why = envelope.why(request, found.reason, key=key)
    until = None if found.until is None else _future(found.until)
    return _act(group_id, key=key, act=lambda number: groups.ignore(number, until=until, who=Who(**why)))


@router.post(
    "/dead-letter-groups/{group_id}/resolve",
    response={200: repair_schemas.Group, **schemas.ERRORS},
    operation_id="resolveDeadLetterGroup",
    openapi_extra=schemas.body(schemas.Reason),
)
def resolve_group(request: HttpRequest, group_id: str) -> HttpResponse:
    """Say that a failure is dealt with. It is open again when another job dies of it."""
    key = key_of(request, scope="dlq:replay")
    why = envelope.read_why(request, key=key)
    return _act(group_id, key=key, act=lambda number: groups.resolve(number, who=Who(**why)))


@router.post(
    "/dead-letter-groups/{group_id}/reopen",
    response={200: repair_schemas.Group, **schemas.ERRORS},
    operation_id="reopenDeadLetterGroup",
    openapi_extra=schemas.body(schemas.Reason),
)
def reopen_group(request: HttpRequest, group_id: str) -> HttpResponse:
    """Take back that a failure is ignored or resolved."""
    key = key_of(request, scope="dlq:replay")
    why = envelope.read_why(request, key=key)
    return _act(group_id, key=key, act=lambda number: groups.reopen(number, who=Who(**why)))


def _act(group_id: str, *, key: Key, act: Callable[[int], object]) -> HttpResponse:
    with bounded():
        row = _find(group_id, key=key)
        try:
            act(row.id)
        except GroupNotFound:
            raise _unknown() from None
        return envelope.answer(_as_json(_find(group_id, key=key)))


def _find(text: str, *, key: Key) -> GroupRow:
    """Return a group that the key may see. Raises: Problem 404 for any other."""
    row = groups.group(int(text)) if _NUMBER.fullmatch(text) else None
    if row is None or not key.may_use(row.type):
        raise _unknown()
    return row


def _unknown() -> Problem:
    return Problem("unknown_group", "There is no failure group of this id.", status=404)


def _future(text: Any) -> datetime:
    """Read until when. Raises: Problem."""
    until = times.read_run_at(text, pointer="/until")
    # A bound, not a decision about a job: the process's clock will do.
    if until <= datetime.now(UTC):
        raise Problem("invalid_datetime", "until is in the future, or left out.", pointer="/until")
    return until


def _read_filter(request: HttpRequest, *, key: Key) -> Filter:
    """Read the query string. Raises: Problem."""
    found = listing.read_query(request.GET, Filter)
    listing.check_limit(found.limit)
    if found.reason is not None and found.reason not in set(DEAD_REASONS):
        raise listing.bad("reason", f"is one of {', '.join(DEAD_REASONS)}")
    if found.state not in groups.STATES:
        raise listing.bad("state", f"is one of {', '.join(groups.STATES)}")
    listing.check_type(found.type, key=key)
    return found


def _packed(place: Cursor) -> UUID:
    """Return where a page ends, as the 128 bits that a cursor holds: tier, time, number."""
    tier, at, number = place
    return UUID(int=tier << 120 | ((at - _EPOCH) // _MICROSECOND) << 64 | number)


def _place(packed: UUID) -> Cursor:
    bits = packed.int
    return bits >> 120, _EPOCH + (bits >> 64 & (2**56 - 1)) * _MICROSECOND, bits & (2**64 - 1)


def _as_json(row: GroupRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "type": row.type,
        "tier": row.tier,
        "reason": row.reason,
        "fingerprint": row.fingerprint,
        "error_class": row.error_class or None,
        "message": redact_text(row.message) or None,
        "frame": row.frame or None,
        "died": row.died,
        "open": row.open,
        "first_at": times.write(row.first_at),
        "last_at": times.write(row.last_at),
        "hours": list(row.hours),
        "state": row.state,
        "state_at": times.write(row.state_at),
        "state_by": row.state_by or None,
        "state_reason": redact_text(row.state_reason) or None,
        "ignored_until": times.write(row.ignored_until),
        "owner": row.owner or None,
        "note": redact_text(row.note) or None,
        "regressed_at": times.write(row.regressed_at),
        "regressions": row.regressions,
        "sample": None if row.sample is None else str(row.sample),
        "plan": None if row.plan_id is None else str(row.plan_id),
        "triage": row.triage,
        "triaged_at": times.write(row.triaged_at),
        "links": {
            "self": f"{settings.PUBLIC_URL}{job_json.BASE}/dead-letter-groups/{row.id}",
            "board": f"{settings.PUBLIC_URL}/dlq/groups/{row.id}/",
        },
    }
