"""The calls on annotations: keep one, list them.

Not here: their rules (`jobsboard.annotations`), how the board shows them (`jobsboard.board.marks`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Router

from jobsboard.annotations import AnnotationRefused, KeyUsedOtherwise, Wanted, annotate
from jobsboard.api import envelope, listing, schemas, times
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem, request_id
from jobsboard.models import ANNOTATION_KINDS, Annotation
from queues import contracts

router = Router()

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_TEXT: Final = {"type": "string"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class OneAnnotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /annotations`."""

    kind: str
    # Any: a number or an object here is a bad time, said so by the reader of times.
    at: Any = None
    job_type: str | None = None
    category: str | None = None
    count: int | None = None
    text: str | None = None
    url: str | None = None


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of `GET /annotations`, strictly."""

    since: str | None = None
    until: str | None = None
    type: str | None = None
    kind: str | None = None
    limit: int = listing.LIMIT_DEFAULT
    cursor: str | None = None


@router.post(
    "/annotations",
    response={201: schemas.Annotation, 200: schemas.Annotation, **schemas.ERRORS},
    operation_id="createAnnotation",
    openapi_extra=schemas.body(schemas.OneAnnotation)
    | schemas.header("Idempotency-Key", {"type": "string", "pattern": schemas.KEY}),
)
def create_annotation(request: HttpRequest) -> HttpResponse:
    """Keep a deploy, an incident or a count of support contacts. With a key that was sent before, 200 and the first."""
    key = key_of(request, scope="jobs:write")
    one = envelope.read(envelope.read_body(request, limit=envelope.ONE_MAX), OneAnnotation)
    sent_key = request.headers.get("Idempotency-Key")
    if sent_key is not None and not _KEY.fullmatch(sent_key):
        raise Problem("dedupe_key_invalid", "A key has 1 to 255 visible ASCII characters.")
    wanted = _wanted(one, key=key)
    try:
        with bounded():
            row, is_new = annotate(
                wanted,
                created_by=key.actor,
                source="api",
                request_id=request_id(request),
                idempotency_key=sent_key,
            )
    except AnnotationRefused as refused:
        raise Problem("invalid_request", refused.detail, pointer=f"/{refused.field}") from None
    except KeyUsedOtherwise as error:
        raise Problem("dedupe_conflict", str(error)) from None
    response = envelope.answer(_as_json(row), status=201 if is_new else 200)
    if not is_new:
        response["Idempotency-Replayed"] = "true"
    return response


@router.get(
    "/annotations",
    response={200: schemas.AnnotationPage, **schemas.ERRORS},
    operation_id="listAnnotations",
    openapi_extra=schemas.query(
        since={"type": "string", "format": "date-time"},
        until={"type": "string", "format": "date-time"},
        type=_TEXT,
        kind={"type": "string", "enum": list(ANNOTATION_KINDS)},
        limit={"type": "integer", "minimum": 1, "maximum": listing.LIMIT_MAX, "default": listing.LIMIT_DEFAULT},
        cursor=_TEXT,
    ),
)
def list_annotations(request: HttpRequest) -> HttpResponse:
    """Return annotations by their time, newest first, as far as the key may see them."""
    key = key_of(request, scope="jobs:read")
    wanted = listing.read_query(request.GET, Filter)
    listing.check_limit(wanted.limit)
    if wanted.kind is not None and wanted.kind not in ANNOTATION_KINDS:
        raise listing.bad("kind", f"is one of {', '.join(ANNOTATION_KINDS)}")
    listing.check_type(wanted.type, key=key)
    scope = ["annotations", wanted.since, wanted.until, wanted.type, wanted.kind]
    with bounded():
        rows = list(_narrow(wanted, key=key, scope=scope)[: wanted.limit + 1])
    more = len(rows) > wanted.limit
    rows = rows[: wanted.limit]
    mark = listing.seal(_place(rows[-1]), scope=scope) if more else None
    return envelope.answer({"items": [_as_json(row) for row in rows], "next": mark})


def _wanted(one: OneAnnotation, *, key: Key) -> Wanted:
    """Turn a body into what is wanted. Raises: Problem."""
    if one.job_type is None:
        if not key.uses_every_type:
            detail = "This key is for some job types only: name one of them."
            raise Problem("invalid_request", detail, pointer="/job_type")
    elif one.job_type not in contracts.all_current() or not key.may_use(one.job_type):
        raise Problem("unknown_job_type", "There is no job type of this name.", pointer="/job_type")
    return Wanted(
        kind=one.kind,
        at=None if one.at is None else times.read(one.at, pointer="/at"),
        job_type=one.job_type or "",
        category=one.category or "",
        count=one.count,
        text=one.text or "",
        url=one.url or "",
    )


def _narrow(wanted: Filter, *, key: Key, scope: list[Any]) -> QuerySet[Annotation]:
    """Return what fits, newest first. Raises: Problem."""
    rows = Annotation.objects.order_by("-at", "-id")
    if wanted.since is not None:
        rows = rows.filter(at__gte=times.read(wanted.since, pointer="since"))
    if wanted.until is not None:
        rows = rows.filter(at__lt=times.read(wanted.until, pointer="until"))
    if wanted.kind is not None:
        rows = rows.filter(kind=wanted.kind)
    if wanted.type is not None:
        rows = rows.filter(job_type=wanted.type)
    elif not key.uses_every_type:
        rows = rows.filter(job_type__in=["", *(name for name in contracts.all_current() if key.may_use(name))])
    if wanted.cursor is not None:
        place = listing.open_cursor(wanted.cursor, scope=scope).int
        at = _EPOCH + (place >> 64) * _MICROSECOND
        rows = rows.filter(at__lte=at).exclude(at=at, id__gte=place & (2**64 - 1))
    return rows


def _place(row: Annotation) -> UUID:
    """Return where a row stands in the list, as the 128 bits that a cursor holds: its time, then its number."""
    return UUID(int=((row.at - _EPOCH) // _MICROSECOND) << 64 | row.pk)


def _as_json(row: Annotation) -> dict[str, Any]:
    is_support = row.kind == "support"
    return {
        "id": row.pk,
        "kind": row.kind,
        "at": times.write(row.at),
        "job_type": row.job_type or None,
        "category": row.category if is_support else None,
        "count": row.count if is_support else None,
        "text": row.text,
        "url": row.url or None,
        "created_by": row.created_by,
        "created_at": times.write(row.created_at),
    }
