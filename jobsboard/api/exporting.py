"""The call that downloads dead letters. Not here: what is in the file, and how it is read (`dlq.exporting`)."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Router

from dlq import exporting
from dlq.exporting import By, Wanted
from jobsboard.api import listing, schemas, times
from jobsboard.api.access import key_of
from jobsboard.api.problems import request_id
from queues import contracts
from queues.states import DEAD_REASONS

router = Router()

_TEXT: Final = {"type": "string"}
_TIME: Final = {"type": "string", "format": "date-time"}
_FINGERPRINT: Final = re.compile(r"[0-9A-Za-z]{1,32}")
_FILE: Final[dict[Any, Any]] = {
    "responses": {
        200: {
            "description": "The file, as it is read.",
            "content": {kind.partition(";")[0]: {"schema": _TEXT} for kind in exporting.CONTENT_TYPES.values()},
        }
    }
}


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string, strictly."""

    format: str
    type: str | None = None
    tier: Literal[1, 2, 3] | None = None
    reason: str | None = None
    fingerprint: str | None = None
    since: str | None = None
    until: str | None = None


_QUERY: Final = schemas.query(
    type=_TEXT,
    tier={"type": "integer", "enum": [1, 2, 3]},
    reason={"type": "string", "enum": list(DEAD_REASONS)},
    fingerprint={"type": "string", "pattern": f"^{_FINGERPRINT.pattern}$"},
    since=_TIME,
    until=_TIME,
)
_FORMAT: Final = {
    "in": "query",
    "name": "format",
    "required": True,
    "schema": {"type": "string", "enum": list(exporting.FORMATS)},
}


@router.get(
    "/dead-letters/export",
    response=schemas.ERRORS,
    operation_id="exportDeadLetters",
    openapi_extra={"parameters": [_FORMAT, *_QUERY["parameters"]], **_FILE},
)
def export_dead_letters(request: HttpRequest) -> StreamingHttpResponse:
    """Download unresolved dead letters as CSV or JSON lines: redacted, by type and then newest first.

    100,000 at most; a header and the last JSON line say when there are more.
    """
    key = key_of(request, scope="dlq:read")
    found = listing.read_query(request.GET, Filter)
    if found.format not in exporting.FORMATS:
        raise listing.bad("format", f"is one of {', '.join(exporting.FORMATS)}")
    if found.reason is not None and found.reason not in set(DEAD_REASONS):
        raise listing.bad("reason", f"is one of {', '.join(DEAD_REASONS)}")
    if found.fingerprint is not None and not _FINGERPRINT.fullmatch(found.fingerprint):
        raise listing.bad("fingerprint", "is one that a dead letter has")
    listing.check_type(found.type, key=key)
    wanted = Wanted(
        types=[name for name in contracts.all_current() if key.may_use(name)],
        type=found.type,
        tier=found.tier,
        reason=found.reason,
        fingerprint=found.fingerprint,
        since=None if found.since is None else times.read(found.since, pointer="since"),
        until=None if found.until is None else times.read(found.until, pointer="until"),
    )
    form: exporting.Format = "csv" if found.format == "csv" else "jsonl"
    by = By(actor=key.actor, source="api", request_id=request_id(request))
    return StreamingHttpResponse(
        exporting.stream(wanted, form=form, payload=True, by=by),
        content_type=exporting.CONTENT_TYPES[form],
        headers=exporting.headers(wanted, form=form),
    )
