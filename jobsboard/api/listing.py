"""Jobs as a key may see them: one by its id, and pages without probes, newest first, with signed cursors and a bounded
look.

Not here: the job as JSON (`jobsboard.api.job_json`); dead letters (`jobsboard.api.dead_letters`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec
from django.core import signing
from django.http import QueryDict

from jobsboard.api import job_json, times
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem, unknown_job, unknown_job_type
from queues import contracts
from queues.models import DedupeKey, Job, JobQuerySet
from queues.states import JobState

LOOK_AT_MOST: Final = 10_000
"""Rows that a filter without an index of its own may look at in one request."""
LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 100
_LINEAGE_MAX: Final = 50
_SALT: Final = "jobsboard.api.cursor"
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,255}")
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)

_T = TypeVar("_T", bound=msgspec.Struct)


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The query string of a call that takes none: a filter that does nothing would be believed."""


class Filter(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The query string of `GET /jobs`, strictly."""

    type: str | None = None
    state: str | None = None
    tier: Literal[1, 2, 3] | None = None
    group: str | None = None
    dedupe_key: str | None = None
    since: str | None = None
    until: str | None = None
    limit: int = LIMIT_DEFAULT
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """Jobs, where the next page begins, and how far this request looked."""

    jobs: list[Job]
    next: str | None
    searched_rows: int | None
    """How many rows a filter without an index looked at; None when an index answered exactly."""
    complete: bool
    """Whether there is nothing further."""


def read_id(text: str) -> UUID | None:
    """Read the id of a job; None for what cannot be one."""
    return UUID(text) if _ID.fullmatch(text) else None


def find(text: str, *, key: Key) -> Job:
    """Return a job that the key may see. Raises: Problem 404 for any other."""
    job_id = read_id(text)
    job = None if job_id is None else job_json.readable().filter(id=job_id).first()
    if job is None or not key.may_use(job.type):
        raise unknown_job()
    return job


def read_query(query: QueryDict, shape: type[_T]) -> _T:
    """Read a query string strictly. Raises: Problem 422."""
    for name, values in query.lists():
        if len(values) != 1:
            raise bad(name, "is given more than once")
    try:
        return msgspec.convert(_typed({name: str(value) for name, value in query.items()}), shape)
    except msgspec.ValidationError as error:
        raise Problem("invalid_query", f"{error}.", pointer="") from None


def check_limit(limit: int) -> None:
    """Refuse a page that is too long or none. Raises: Problem 422."""
    if not 1 <= limit <= LIMIT_MAX:
        raise bad("limit", f"is from 1 to {LIMIT_MAX}")


def check_type(name: str | None, *, key: Key) -> None:
    """Refuse a type that is closed to the key like one that does not exist. Raises: Problem 404."""
    if name is not None and (name not in contracts.all_current() or not key.may_use(name)):
        raise unknown_job_type()


def read_filter(query: QueryDict) -> Filter:
    """Read the query string of `GET /jobs`. Raises: Problem 422 with the parameter's name."""
    found = read_query(query, Filter)
    check_limit(found.limit)
    if found.state is not None and found.state not in set(JobState):
        raise bad("state", f"is one of {', '.join(JobState)}")
    for name in ("group", "dedupe_key"):
        value = getattr(found, name)
        if value is not None and not _VISIBLE.fullmatch(value):
            raise bad(name, "has 1 to 255 visible ASCII characters")
    return found


def page(wanted: Filter, *, key: Key) -> Page:
    """Return the jobs that fit, as far as the key may see them.

    Raises: Problem 404 for a type that does not exist or is closed to the key, 422 for a bad cursor or time.
    """
    check_type(wanted.type, key=key)
    base = _between(wanted)
    if wanted.type is not None:
        base = base.of_type(wanted.type)
        if wanted.dedupe_key is not None:
            lineage = _lineage(wanted.type, wanted.dedupe_key)
            if lineage:
                return _exact(_narrow(base.filter(id__in=lineage), wanted, key=key), wanted)
    if _needs_look(wanted, key=key):
        return _bounded(base, wanted, key=key)
    return _all_but_probes(base, wanted)


def _typed(query: Mapping[str, str]) -> dict[str, Any]:
    """Turn the numbers of a query string into numbers; what is not one stays text and is refused with its name."""
    numbers = {name: int(query[name]) for name in ("tier", "limit") if re.fullmatch(r"[0-9]{1,9}", query.get(name, ""))}
    return {**query, **numbers}


def _between(wanted: Filter) -> JobQuerySet:
    """Bound the ids, whose first 48 bits are milliseconds, so that partitions outside are never read."""
    jobs = job_json.readable().order_by("-id")
    if wanted.since is not None:
        jobs = jobs.filter(id__gte=first_id(times.read(wanted.since, pointer="since")))
    if wanted.until is not None:
        jobs = jobs.filter(id__lt=first_id(times.read(wanted.until, pointer="until")))
    if wanted.cursor is not None:
        jobs = jobs.filter(id__lt=open_cursor(wanted.cursor, scope=_scope(wanted)))
    return jobs


def first_id(at: datetime) -> UUID:
    """Return the lowest id of a moment."""
    milliseconds = max(0, int(at.timestamp() * 1000))
    return UUID(int=milliseconds << 80)


def _lineage(job_type: str, dedupe_key: str) -> list[UUID]:
    """Return the newest job of a key and those that it replays; the key's table finds them without a search."""
    newest = DedupeKey.objects.filter(type=job_type, key=dedupe_key).values_list("job_id", flat=True).first()
    found: list[UUID] = []
    while newest is not None and len(found) < _LINEAGE_MAX:
        found.append(newest)
        newest = Job.objects.filter(id=newest).values_list("replay_of", flat=True).first()
    return found


def _needs_look(wanted: Filter, *, key: Key) -> bool:
    if wanted.type is None and not key.uses_every_type:
        return True
    return any(value is not None for value in (wanted.state, wanted.tier, wanted.group, wanted.dedupe_key))


def _narrow(jobs: JobQuerySet, wanted: Filter, *, key: Key) -> JobQuerySet:
    if wanted.type is None and not key.uses_every_type:
        jobs = jobs.filter(type__in=[name for name in contracts.all_current() if key.may_use(name)])
    if wanted.state is not None:
        jobs = jobs.filter(state=wanted.state)
    if wanted.tier is not None:
        jobs = jobs.filter(tier=wanted.tier)
    if wanted.group is not None:
        jobs = jobs.filter(group=wanted.group)
    if wanted.dedupe_key is not None:
        jobs = jobs.filter(dedupe_key=wanted.dedupe_key)
    return jobs.filter(probe=False)


def _exact(jobs: JobQuerySet, wanted: Filter) -> Page:
    found = list(jobs[: wanted.limit + 1])
    more = len(found) > wanted.limit
    found = found[: wanted.limit]
    return Page(
        jobs=found,
        next=seal(found[-1].id, scope=_scope(wanted)) if more else None,
        searched_rows=None,
        complete=not more,
    )


def _all_but_probes(base: JobQuerySet, wanted: Filter) -> Page:
    """Return a page without a filter: mostly few probes lie between, and at most LOOK_AT_MOST rows are looked at."""
    ids: list[UUID] = []
    looked: list[tuple[UUID, bool]] = []
    for look in (4 * (wanted.limit + 1), LOOK_AT_MOST):
        looked = list(base.values_list("id", "probe")[:look])
        ids = [job_id for job_id, probe in looked if not probe][: wanted.limit + 1]
        if len(ids) > wanted.limit or len(looked) < look:
            break
    more = len(ids) > wanted.limit
    ids = ids[: wanted.limit]
    end = ids[-1] if more else looked[-1][0] if len(looked) >= LOOK_AT_MOST else None
    return Page(
        jobs=list(base.filter(id__in=ids)),
        next=None if end is None else seal(end, scope=_scope(wanted)),
        searched_rows=None if more or end is None else len(looked),
        complete=end is None,
    )


def _bounded(base: JobQuerySet, wanted: Filter, *, key: Key) -> Page:
    looked = base.values_list("id", flat=True)[:LOOK_AT_MOST].count()
    floor = (
        base.values_list("id", flat=True)[LOOK_AT_MOST - 1 : LOOK_AT_MOST].first() if looked == LOOK_AT_MOST else None
    )
    if floor is not None:
        base = base.filter(id__gte=floor)
    found = list(_narrow(base, wanted, key=key)[: wanted.limit + 1])
    more = len(found) > wanted.limit
    found = found[: wanted.limit]
    end = found[-1].id if more else floor
    return Page(
        jobs=found,
        next=None if end is None else seal(end, scope=_scope(wanted)),
        searched_rows=looked,
        complete=end is None,
    )


def seal(last: UUID, *, scope: Sequence[Any]) -> str:
    """Write the cursor of the page after this id. `scope` is everything but the page."""
    return signing.dumps([last.hex, _digest(scope)], salt=_SALT)


def open_cursor(cursor: str, *, scope: Sequence[Any]) -> UUID:
    """Read a cursor; one of another filter would skip jobs. Raises: Problem 422."""
    try:
        last, filtered = signing.loads(cursor, salt=_SALT)
        if filtered == _digest(scope):
            return UUID(hex=last)
    except (signing.BadSignature, ValueError, TypeError):
        pass
    raise Problem("invalid_cursor", "The cursor is not one that this list gave for the same filter.", pointer="cursor")


def _scope(wanted: Filter) -> list[Any]:
    return [wanted.type, wanted.state, wanted.tier, wanted.group, wanted.dedupe_key, wanted.since, wanted.until]


def _digest(scope: Sequence[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(scope)).hexdigest()[:16]


def bad(name: str, says: str) -> Problem:
    """Return what is wrong with a parameter."""
    return Problem("invalid_query", f"The parameter {name} {says}.", pointer=name)
