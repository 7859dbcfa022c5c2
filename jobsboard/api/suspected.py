"""Signs that something happened twice, as JSON, newest first. Not here: what makes one (`queues.lifecycle`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from django.http import HttpRequest, HttpResponse
from ninja import Router

from jobsboard.api import envelope, listing, schemas, times
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from queues import outcomes
from queues.models.outcome import SuspectedDuplicate
from queues.outcomes import Sign
from queues.redaction import redact_text

router = Router()

KINDS: Final = tuple(SuspectedDuplicate.Kind.values)
LOOKS: Final = 5
STEP: Final = 200
"""A key for some types only looks through at most LOOKS times STEP signs of all types in one request."""
_TEXT: Final = {"type": "string"}
_TIME: Final = {"type": "string", "format": "date-time"}


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string, strictly."""

    type: str | None = None
    kind: str | None = None
    since: str | None = None
    until: str | None = None
    limit: int = listing.LIMIT_DEFAULT
    cursor: str | None = None


@router.get(
    "/suspected-duplicates",
    response={200: schemas.SuspectedPage, **schemas.ERRORS},
    operation_id="listSuspectedDuplicates",
    openapi_extra=schemas.query(
        type=_TEXT,
        kind={"type": "string", "enum": list(KINDS)},
        since=_TIME,
        until=_TIME,
        limit={"type": "integer", "minimum": 1, "maximum": listing.LIMIT_MAX, "default": listing.LIMIT_DEFAULT},
        cursor=_TEXT,
    ),
)
def list_suspected_duplicates(request: HttpRequest) -> HttpResponse:
    """Return signs that something happened twice, newest first, as far as the key may see their types."""
    key = key_of(request, scope="jobs:read")
    wanted = listing.read_query(request.GET, Filter)
    listing.check_limit(wanted.limit)
    if wanted.kind is not None and wanted.kind not in KINDS:
        raise listing.bad("kind", f"is one of {', '.join(KINDS)}")
    listing.check_type(wanted.type, key=key)
    scope = ["suspected", wanted.type, wanted.kind, wanted.since, wanted.until]
    with bounded():
        found, further = _read(wanted, key=key, scope=scope)
    mark = None if further is None else listing.seal(UUID(int=further), scope=scope)
    return envelope.answer({"items": [_as_json(sign) for sign in found], "next": mark})


def _read(wanted: Filter, *, key: Key, scope: list[Any]) -> tuple[list[Sign], int | None]:
    """Return one page, and the number that the next one begins below. Raises: Problem."""
    before = None if wanted.cursor is None else listing.open_cursor(wanted.cursor, scope=scope).int
    since, until = _time(wanted.since, "since"), _time(wanted.until, "until")
    every = wanted.type is not None or key.uses_every_type
    step = wanted.limit + 1 if every else STEP
    found: list[Sign] = []
    for _ in range(1 if every else LOOKS):
        looked = outcomes.signs(name=wanted.type, kind=wanted.kind, since=since, until=until, before=before, limit=step)
        found += [sign for sign in looked if every or key.may_use(sign.type)]
        if len(found) > wanted.limit:
            found = found[: wanted.limit]
            return found, found[-1].id
        if len(looked) < step:
            return found, None
        before = looked[-1].id
    return found, before


def _time(text: str | None, name: str) -> datetime | None:
    return None if text is None else times.read(text, pointer=name)


def _as_json(sign: Sign) -> dict[str, Any]:
    def text(name: str) -> str | None:
        value = sign.detail.get(name)
        return None if value is None else redact_text(str(value))

    return {
        "id": sign.id,
        "kind": sign.kind,
        "type": sign.type,
        "tier": sign.tier,
        "job_id": str(sign.job_id),
        "run": sign.fence,
        "at": times.write(sign.at),
        "known": text("known"),
        "said": text("said"),
        "error_class": text("error_class"),
        "detail": text("detail"),
    }
