"""The calls on dead letters: list, preflight, replay, cancel, ignore.

Not here: what makes a replay safe (`dlq.preflight`), the rules of repairs (`queues.actions`), groups, plans, exports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec
from django.db import connection
from django.http import HttpRequest, HttpResponse
from ninja import Router

from dlq import replaying
from jobsboard.api import envelope, job_json, jobs, listing, problems, repair_schemas, schemas, times, verdicts
from jobsboard.api.access import key_of
from jobsboard.api.database import bounded
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem
from queues import actions, contracts
from queues.models import Job
from queues.states import DEAD_REASONS, REPLAYABLE, Resolution

router = Router()

_FINGERPRINT: Final = re.compile(r"[0-9A-Za-z]{1,32}")
_TEXT: Final = {"type": "string"}
_ASK: Final = {"true": True, "false": False}


class Asked(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of a preflight, strictly."""

    ask: str = "true"


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of `GET /dead-letters`, strictly."""

    type: str | None = None
    reason: str | None = None
    fingerprint: str | None = None
    resolution: str = Resolution.OPEN.value
    since: str | None = None
    until: str | None = None
    limit: int = listing.LIMIT_DEFAULT
    cursor: str | None = None


@router.get(
    "/dead-letters",
    response={200: repair_schemas.DeadLetterPage, **schemas.ERRORS},
    operation_id="listDeadLetters",
    openapi_extra=schemas.query(
        type=_TEXT,
        reason={"type": "string", "enum": list(DEAD_REASONS)},
        fingerprint={"type": "string", "pattern": f"^{_FINGERPRINT.pattern}$"},
        resolution={"type": "string", "enum": list(Resolution), "default": Resolution.OPEN},
        since={"type": "string", "format": "date-time"},
        until={"type": "string", "format": "date-time"},
        limit={"type": "integer", "minimum": 1, "maximum": listing.LIMIT_MAX, "default": listing.LIMIT_DEFAULT},
        cursor=_TEXT,
    ),
)
def list_dead_letters(request: HttpRequest) -> HttpResponse:
    """Return dead letters, last accepted first; unresolved ones unless asked for others."""
    key = key_of(request, scope="dlq:read")
    wanted = _read_filter(request, key=key)
    with bounded():
        page = _page(wanted, key=key)
        found = {job.id: job for job in job_json.readable().filter(id__in=page.ids)}
        groups = _groups(list(found.values()))
    # One that was pruned between the two statements is gone, not an error.
    items = [_as_json(found[job_id], groups) for job_id in page.ids if job_id in found]
    searched = {"rows": page.searched_rows, "complete": page.next is None}
    return envelope.answer({"items": items, "next": page.next, "searched": searched})


@router.get(
    "/dead-letters/{job_id}/preflight",
    response={200: repair_schemas.Preflight, **schemas.ERRORS},
    operation_id="preflightDeadLetter",
    openapi_extra=schemas.query(ask={"type": "boolean", "default": True}),
)
def preflight_dead_letter(request: HttpRequest, job_id: str) -> HttpResponse:
    """Say whether a replay is safe. What nobody knows is `unknown`, never safe.

    A worker asks the outside world first, where only that knows: two seconds at most, `ask=false` does without.
    """
    key = key_of(request, scope="dlq:read")
    asked = listing.read_query(request.GET, Asked)
    if asked.ask not in _ASK:
        raise listing.bad("ask", "is true or false")
    with bounded():
        job = listing.find(job_id, key=key)
    if job.state not in REPLAYABLE:
        detail = f"The job is {job.state}; only dead, expired and cancelled ones are replayed."
        raise Problem("not_replayable", detail, status=409, state=job.state)
    found = replaying.look(job, ask=_ASK[asked.ask])
    return envelope.answer({"id": str(job.id), **verdicts.as_json(found), "at": times.write(found.at)})


@router.post(
    "/dead-letters/{job_id}/replay",
    response={201: repair_schemas.ReplayedJob, **schemas.ERRORS},
    operation_id="replayDeadLetter",
    openapi_extra=schemas.body(repair_schemas.Replay),
)
def replay_dead_letter(request: HttpRequest, job_id: str) -> HttpResponse:
    """Do the same as `/jobs/{id}/replay`."""
    return jobs.replay_job(request, job_id)


@router.post(
    "/dead-letters/{job_id}/cancel",
    response={200: schemas.Job, **schemas.ERRORS},
    operation_id="cancelDeadLetter",
    openapi_extra=schemas.body(schemas.Reason),
)
def cancel_dead_letter(request: HttpRequest, job_id: str) -> HttpResponse:
    """Resolve a dead letter without running it again; it stays dead. Asked again, the answer is the same."""
    return _close(request, job_id, actions.cancel_dead_letter)


@router.post(
    "/dead-letters/{job_id}/ignore",
    response={200: schemas.Job, **schemas.ERRORS},
    operation_id="ignoreDeadLetter",
    openapi_extra=schemas.body(schemas.Reason),
)
def ignore_dead_letter(request: HttpRequest, job_id: str) -> HttpResponse:
    """Set a dead letter aside: nothing is to be done about it. Asked again, the answer is the same."""
    return _close(request, job_id, actions.ignore_dead_letter)


def _close(request: HttpRequest, job_id: str, act: Callable[..., bool]) -> HttpResponse:
    key = key_of(request, scope="dlq:replay")
    why = envelope.read_why(request, key=key)
    with bounded():
        job = listing.find(job_id, key=key)
        try:
            act(job.id, **why)
        except actions.NotCancellable as error:
            detail = f"The job is {error.state} and not an open dead letter."
            raise Problem("not_cancellable", detail, status=409, state=error.state) from None
        except actions.JobNotFound:
            raise problems.unknown_job() from None
        job = job_json.readable().get(id=job.id)
    return envelope.answer(job_json.as_json(job))


@dataclass(frozen=True, kw_only=True)
class _Page:
    ids: list[UUID]
    next: str | None
    searched_rows: int | None


def _read_filter(request: HttpRequest, *, key: Key) -> Filter:
    """Read the query string. Raises: Problem."""
    found = listing.read_query(request.GET, Filter)
    listing.check_limit(found.limit)
    if found.reason is not None and found.reason not in set(DEAD_REASONS):
        raise listing.bad("reason", f"is one of {', '.join(DEAD_REASONS)}")
    if found.resolution not in set(Resolution):
        raise listing.bad("resolution", f"is one of {', '.join(Resolution)}")
    if found.fingerprint is not None and not _FINGERPRINT.fullmatch(found.fingerprint):
        raise listing.bad("fingerprint", "is one that a dead letter has")
    listing.check_type(found.type, key=key)
    return found


# The newest of each type come from index job_dead, or job_by_type, (type, id); then the newest of these. A type that
# was not read to its end hides what is older than the last one read: nothing below the highest such edge is shown.
_LIST: Final = """
WITH looked AS MATERIALIZED (
  SELECT d.* FROM unnest(%(types)s::text[]) AS t (name) CROSS JOIN LATERAL (
    SELECT id, type, NOT probe AND state = 'dead' AND resolution = %(resolution)s
      AND (%(reason)s::text IS NULL OR reason = %(reason)s)
      AND (%(fingerprint)s::text IS NULL OR fingerprint = %(fingerprint)s) AS fits
    FROM queues_job
    WHERE type = t.name AND id >= %(first)s AND id < %(last)s AND {which}
    ORDER BY id DESC LIMIT %(each)s) AS d
), edge AS (
  SELECT oldest FROM (SELECT (array_agg(id ORDER BY id))[1] AS oldest, count(*) AS n FROM looked GROUP BY type) AS e
  WHERE n >= %(each)s ORDER BY oldest DESC LIMIT 1
)
SELECT (SELECT count(*) FROM looked), (SELECT oldest FROM edge), ARRAY(
  SELECT id FROM looked WHERE fits AND id >= coalesce((SELECT oldest FROM edge), %(first)s)
  ORDER BY id DESC LIMIT %(limit)s)
"""
_OPEN: Final = _LIST.format(which="state = 'dead' AND resolution = 'open'")
_ANY: Final = _LIST.format(which="true")


def _page(wanted: Filter, *, key: Key) -> _Page:
    """Return one page. Unresolved ones without a further filter are read exactly, others within a bounded look."""
    types = [wanted.type] if wanted.type is not None else [n for n in contracts.all_current() if key.may_use(n)]
    scope = ["dead", wanted.type, wanted.reason, wanted.fingerprint, wanted.resolution, wanted.since, wanted.until]
    is_open = wanted.resolution == Resolution.OPEN
    exact = is_open and wanted.reason is None and wanted.fingerprint is None
    params = {
        "types": types,
        "resolution": wanted.resolution,
        "reason": wanted.reason,
        "fingerprint": wanted.fingerprint,
        "each": wanted.limit + 1 if exact else max(listing.LOOK_AT_MOST // max(len(types), 1), wanted.limit + 1),
        "limit": wanted.limit + 1,
        **_bounds(wanted, scope),
    }
    with connection.cursor() as cursor:
        cursor.execute(_OPEN if is_open else _ANY, params)
        looked, edge, ids = cursor.fetchone()
    more = len(ids) > wanted.limit
    ids = ids[: wanted.limit]
    end = ids[-1] if more else edge
    return _Page(
        ids=ids,
        next=None if end is None else listing.seal(end, scope=scope),
        searched_rows=None if exact else looked,
    )


def _bounds(wanted: Filter, scope: list[Any]) -> dict[str, UUID]:
    """Bound the ids, whose first 48 bits are their time, so that partitions outside are never read."""
    first, last = UUID(int=0), UUID(int=2**128 - 1)
    if wanted.since is not None:
        first = listing.first_id(times.read(wanted.since, pointer="since"))
    if wanted.until is not None:
        last = listing.first_id(times.read(wanted.until, pointer="until"))
    if wanted.cursor is not None:
        last = min(last, listing.open_cursor(wanted.cursor, scope=scope))
    return {"first": first, "last": last}


_GROUPS: Final = """
SELECT f.type, f.reason, f.fingerprint, f.id
FROM unnest(%(types)s::text[], %(reasons)s::text[], %(fingerprints)s::text[]) AS a (type, reason, fingerprint)
JOIN queues_failurecount f ON f.type = a.type AND f.reason = a.reason AND f.fingerprint = a.fingerprint
"""


def _groups(jobs: list[Job]) -> dict[tuple[str, str, str], int]:
    """Return the ids of the failure groups of a page; one that was not counted yet is missing."""
    wanted = sorted({_failure(job) for job in jobs})
    if not wanted:
        return {}
    types, reasons, fingerprints = (list(column) for column in zip(*wanted, strict=True))
    with connection.cursor() as cursor:
        cursor.execute(_GROUPS, {"types": types, "reasons": reasons, "fingerprints": fingerprints})
        return {(kind, reason, fingerprint): number for kind, reason, fingerprint, number in cursor.fetchall()}


def _failure(job: Job) -> tuple[str, str, str]:
    return (job.type, job.reason or "", (job.fingerprint or "")[:16])


def _as_json(job: Job, groups: Mapping[tuple[str, str, str], int]) -> dict[str, Any]:
    return {
        **job_json.as_json(job, tracebacks=False),
        "fingerprint": job.fingerprint,
        "failure_group": groups.get(_failure(job)),
        "resolution": job.resolution,
        "resolved_at": times.write(job.resolved_at),
        "resolved_by": job.resolved_by,
    }
