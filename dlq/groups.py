"""Failure groups: what they are, what people make of them, and what changes by itself (the service `failure-groups`).

Counts come from the fold (`queues.models.FailureCount`); a group is its row of the same id, made when the failure is
seen for the first time. Lists read both and never jobs.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction

from dlq import sql
from dlq.models import FailureGroup
from dlq.replaying import Who
from queues import audit, lifecycle
from queues.lifecycle import OTHERS
from queues.models import Job
from queues.states import JobState

HOURS: Final = 24
PAGE: Final = 50
LOOK_AT_MOST: Final = 10_000
"""Groups that one page looks at, in its order; where a filter leaves few of them, the next page goes on."""
COUNTED_MOST: Final = 1_001
STATES: Final = ("open", "ignored", "resolved", "all")
_NOTE_CHARACTERS: Final = 1_000

Cursor = tuple[int, dt.datetime, int]
_State = FailureGroup.State


class GroupNotFound(LookupError):
    """There is no group of this id."""


@dataclass(frozen=True, kw_only=True)
class GroupFilter:
    """What a list shows. `state`: open (has unresolved dead letters and is not ignored), ignored, resolved, or all."""

    types: Sequence[str]
    type: str | None = None
    tier: int | None = None
    reason: str | None = None
    state: str = "open"


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One group as lists and pages show it. `hours`: deaths in the last 24 hours, oldest first."""

    id: int
    type: str
    tier: int
    reason: str
    fingerprint: str
    died: int
    open: int
    first_at: dt.datetime
    last_at: dt.datetime
    error_class: str
    message: str
    frame: str
    state: str
    state_at: dt.datetime | None
    state_by: str
    state_reason: str
    ignored_until: dt.datetime | None
    note: str
    owner: str
    regressed_at: dt.datetime | None
    regressions: int
    sample: UUID | None
    plan_id: UUID | None
    triage: dict[str, Any] | None
    triaged_at: dt.datetime | None
    hours: Sequence[int] = ()

    @property
    def mixed(self) -> bool:
        """Whether it is all failures of its type and reason that are not told apart: no plan can be about just it."""
        return self.fingerprint == OTHERS


@dataclass(frozen=True, kw_only=True)
class GroupPage:
    """Groups, and where older ones begin."""

    rows: Sequence[GroupRow]
    older: Cursor | None = None


_OF_COUNT: Final = ("id", "type", "tier", "reason", "fingerprint", "died", "open", "first_at", "last_at")
_OF_GROUP: Final = {
    "error_class": "''", "message": "''", "frame": "''", "note": "''", "owner": "''", "regressed_at": "NULL",
    "regressions": "0", "sample": "NULL", "triage": "NULL", "triaged_at": "NULL", "ignored_until": "NULL",
}  # fmt: skip
"""Column → its value while the service has not met the failure."""
_STANDING: Final = {
    "state": "CASE WHEN {aside} THEN 'ignored' WHEN w.plan_id IS NOT NULL THEN 'replaying' ELSE {said} END",
    "state_at": "CASE WHEN {replayed} THEN w.created_at ELSE g.state_at END",
    "state_by": "CASE WHEN {replayed} THEN w.created_by ELSE coalesce(g.state_by, '') END",
    "state_reason": "CASE WHEN {replayed} THEN '' ELSE coalesce(g.state_reason, '') END",
    "plan_id": "CASE WHEN {replayed} THEN w.plan_id END",
}
"""What somebody ignored is ignored; else the plan that is at it says what it is, and then what people said of it."""
_NAMES: Final = (*_OF_COUNT, *_OF_GROUP, *_STANDING)
_SELECT: Final = ", ".join(
    [f"f.{name}" for name in _OF_COUNT]
    + [f"coalesce(g.{name}, {none}) AS {name}" for name, none in _OF_GROUP.items()]
    + [
        expression.format(
            aside="coalesce(g.state, '') = 'ignored'",
            replayed="w.plan_id IS NOT NULL AND coalesce(g.state, '') <> 'ignored'",
            said="CASE WHEN g.state = 'resolved' THEN 'resolved' ELSE 'open' END",
        )
        + f" AS {name}"
        for name, expression in _STANDING.items()
    ]
)
AT_IT: Final = "('running', 'paused', 'following')"
"""States of plans that are at the failures of their items."""
# Each group by its key, one after the other: the page then ends after so many, however many there are.
_FROM: Final = f"""({{counts}}) f
  LEFT JOIN LATERAL (SELECT * FROM dlq_failuregroup WHERE id = f.id LIMIT 1) AS g ON true
  LEFT JOIN LATERAL (
    SELECT a.plan_id, p.created_at, p.created_by FROM dlq_planfailure a JOIN dlq_replayplan p ON p.id = a.plan_id
    WHERE a.type = f.type AND a.reason = f.reason AND a.fingerprint = f.fingerprint AND p.state IN {AT_IT}
    ORDER BY a.plan_id DESC LIMIT 1) AS w ON true"""  # noqa: S608 (constants)
_BARS: Final = """ARRAY(SELECT coalesce(h.died, 0) FROM generate_series(
    date_trunc('hour', jobs_now()) - interval '23 hours', date_trunc('hour', jobs_now()), interval '1 hour') AS s (at)
  LEFT JOIN queues_failurehour h ON h.failure_id = p.id AND h.at = s.at ORDER BY s.at)"""
_OPEN: Final = "SELECT count(*) FROM (SELECT 1 FROM queues_failurecount WHERE open > 0 LIMIT %(most)s) AS n"
_LIST: Final = f"""
WITH p AS MATERIALIZED (
  SELECT {_SELECT} FROM {_FROM} WHERE {{where}} ORDER BY {{order}} LIMIT %(limit)s
)
SELECT p.*, {_BARS} FROM p ORDER BY p.tier, p.last_at DESC, p.id DESC
"""  # noqa: S608 (constants)
# In the order of the indexes failure_open and failure_listed. A tier that is named is no part of the order: the planner
# would not see that what comes out of the index is in order, and sort it all.
_COUNTS: Final = "SELECT * FROM queues_failurecount WHERE {chosen} ORDER BY {order} LIMIT %(look)s"
_IN_ALL: Final = "tier, last_at DESC, id DESC"
_IN_TIER: Final = "last_at DESC, id DESC"
_LAST_LOOKED: Final = "SELECT tier, last_at, id FROM ({counts}) AS f ORDER BY 1, 2 DESC, 3 DESC OFFSET %(look)s - 1"
# Of one type there are few (queues.lifecycle, FAILURES_MOST), and of ignored ones: found by their own indexes.
_OF_TYPE: Final = "id = ANY(ARRAY(SELECT id FROM queues_failurecount WHERE type = %(type)s LIMIT %(look)s))"
_IGNORED: Final = """id = ANY(ARRAY(
    SELECT id FROM dlq_failuregroup WHERE state = 'ignored' ORDER BY id DESC LIMIT %(look)s))"""
_WHERE: Final = {
    "open": "f.type = ANY(%(types)s::text[]) AND g.state IS DISTINCT FROM 'ignored'",
    "ignored": "f.type = ANY(%(types)s::text[]) AND g.state = 'ignored'",
    "resolved": "f.type = ANY(%(types)s::text[]) AND (g.state = 'resolved' OR f.open <= 0)",
    "all": "f.type = ANY(%(types)s::text[])",
}


def groups(wanted: GroupFilter, *, after: Cursor | None = None, limit: int = PAGE) -> GroupPage:
    """Return one page of groups, tier 1 first, then those that had a death last."""
    params: dict[str, Any] = {
        "types": list(wanted.types), "type": wanted.type, "tier": wanted.tier, "reason": wanted.reason,
        "look": LOOK_AT_MOST,
    }  # fmt: skip
    where = _WHERE[wanted.state] + (" AND f.reason = %(reason)s" if wanted.reason is not None else "")
    rows: list[GroupRow] = []
    if after is not None:
        params |= {"after_tier": after[0], "at": after[1], "after_id": after[2]}
    for order, place in _places(wanted, after):
        counts = _COUNTS.format(chosen=" AND ".join([*place, *_chosen(wanted)]) or "true", order=order)
        rows += _read(counts, where, {**params, "limit": limit + 1 - len(rows)}, order=order)
        if len(rows) > limit:
            break
        looked = sql.rows(_LAST_LOOKED.format(counts=counts), params)
        if looked:
            return GroupPage(rows=rows, older=looked[0])
    more = len(rows) > limit
    rows = rows[:limit]
    return GroupPage(rows=rows, older=(rows[-1].tier, rows[-1].last_at, rows[-1].id) if more else None)


def _places(wanted: GroupFilter, after: Cursor | None) -> list[tuple[str, list[str]]]:
    """Return where a page may lie, each part an unbroken stretch of the index: the rest of a tier, the other tiers.

    Shape: order, conditions.
    """
    if after is None:
        return [(_IN_TIER, ["tier = %(tier)s"])] if wanted.tier is not None else [(_IN_ALL, [])]
    rest = (_IN_TIER, ["tier = %(after_tier)s", "(last_at, id) < (%(at)s, %(after_id)s)"])
    if wanted.tier is not None:
        return [rest] if wanted.tier == after[0] else []
    return [rest, (_IN_ALL, ["tier > %(after_tier)s"])]


def _chosen(wanted: GroupFilter) -> list[str]:
    return [
        *(["open > 0"] if wanted.state == "open" else []),
        *([_IGNORED] if wanted.state == "ignored" else []),
        *([_OF_TYPE] if wanted.type is not None else []),
    ]


def group(group_id: int) -> GroupRow | None:
    """Return one group."""
    rows = _read(_COUNTS.format(chosen="id = %(id)s", order=_IN_ALL), "true", {"id": group_id, "look": 1, "limit": 1})
    return rows[0] if rows else None


def group_of(job: Job) -> GroupRow | None:
    """Return the group of a dead letter; None before the fold has counted it."""
    if job.state != JobState.DEAD or job.probe:
        return None
    params = {"type": job.type, "reason": job.reason, "fingerprint": (job.fingerprint or "")[:16]}
    found = sql.rows(_OF_JOB, {**params, "others": OTHERS})
    return group(found[0][0]) if found else None


_OF_JOB: Final = """
SELECT id FROM queues_failurecount WHERE type = %(type)s AND reason = %(reason)s
  AND fingerprint IN (%(fingerprint)s, %(others)s) ORDER BY fingerprint = %(others)s LIMIT 1
"""


def open_groups() -> int:
    """Count the groups with unresolved dead letters, up to COUNTED_MOST."""
    found = sql.rows(_OPEN, {"most": COUNTED_MOST})
    return int(found[0][0])


def _read(counts: str, where: str, params: dict[str, Any], *, order: str = _IN_ALL) -> list[GroupRow]:
    names = (*_NAMES, "hours")
    found = []
    for row in sql.rows(_LIST.format(counts=counts, where=where, order=order), params):
        values = dict(zip(names, row, strict=True))
        values["triage"] = json.loads(values["triage"]) if isinstance(values["triage"], str) else values["triage"]
        values["hours"] = [int(n) for n in values["hours"]]
        found.append(GroupRow(**values))
    return found


def ignore(group_id: int, *, until: dt.datetime | None, who: Who) -> FailureGroup:
    """Set a failure aside, for ever or until a time; its dead letters stay as they are. Raises: GroupNotFound."""
    with transaction.atomic():
        found = _locked(group_id)
        return _move(found, _State.IGNORED, who=who, verb="ignored", until=until)


def resolve(group_id: int, *, who: Who) -> FailureGroup:
    """Say that a failure is dealt with; it comes back by itself when another job dies of it. Raises: GroupNotFound."""
    with transaction.atomic():
        return _move(_locked(group_id), _State.RESOLVED, who=who, verb="resolved")


def reopen(group_id: int, *, who: Who) -> FailureGroup:
    """Take back that it is ignored or resolved. Raises: GroupNotFound."""
    with transaction.atomic():
        return _move(_locked(group_id), _State.OPEN, who=who, verb="reopened")


def annotate(group_id: int, *, note: str, owner: str, who: Who) -> FailureGroup:
    """Write who looks after a failure, and a note for the next one on call. Raises: GroupNotFound."""
    with transaction.atomic():
        found = _locked(group_id)
        before = {"note": found.note, "owner": found.owner}
        found.note, found.owner = note.strip()[:_NOTE_CHARACTERS], owner.strip()[:150]
        if before != {"note": found.note, "owner": found.owner}:
            found.save(update_fields=["note", "owner"])
            _record(found, "annotated", who, before=before, after={"note": found.note, "owner": found.owner})
        return found


_DIED_NOW: Final = "SELECT (SELECT died FROM queues_failurecount WHERE id = %(id)s), jobs_clock()"


def _move(
    found: FailureGroup, state: FailureGroup.State, *, who: Who, verb: str, until: dt.datetime | None = None
) -> FailureGroup:
    if found.state == state and found.ignored_until == until:
        return found
    before = {"state": found.state}
    died, now = sql.rows(_DIED_NOW, {"id": found.id})[0]
    found.state, found.state_at, found.state_by, found.state_reason = state, now, who.actor[:150], who.reason[:1000]
    found.ignored_until, found.died_before = until, died or 0
    found.save()
    after: dict[str, Any] = {"state": state.value} | ({"until": until.isoformat()} if until else {})
    _record(found, verb, who, before=before, after=after)
    return found


def _record(found: FailureGroup, verb: str, who: Who, *, before: Any, after: Any) -> None:
    audit.record(
        f"failure_group.{verb}", actor=who.actor, object_type="failure_group", object_id=found.id,
        before=before, after=after | {"type": found.type, "fingerprint": found.fingerprint}, reason=who.reason,
        source=who.source, request_id=who.request_id,
    )  # fmt: skip
    lifecycle.touch_board()


def _locked(group_id: int) -> FailureGroup:
    """Return the group, locked; one that the service has not met is made here."""
    with connection.cursor() as cursor:
        cursor.execute(_MAKE, {"id": group_id})
    found = FailureGroup.objects.select_for_update().filter(id=group_id).first()
    if found is None:
        raise GroupNotFound(str(group_id))
    return found


_MAKE: Final = """
INSERT INTO dlq_failuregroup (id, type, reason, fingerprint, error_class, message, frame, state, state_at, state_by,
  state_reason, note, owner, died_before, regressions)
SELECT f.id, f.type, f.reason, f.fingerprint, '', '', '', 'open', jobs_clock(), '', '', '', '', 0, 0
FROM queues_failurecount f WHERE f.id = %(id)s ON CONFLICT DO NOTHING
"""


_AT: Final = """
INSERT INTO dlq_planfailure (type, reason, fingerprint, plan_id)
SELECT DISTINCT type, split_part(failure, '/', 1), split_part(failure, '/', 2), plan_id
FROM dlq_planitem WHERE plan_id = %(plan)s AND failure <> '' ON CONFLICT DO NOTHING
"""
_AT_NO_LONGER: Final = "DELETE FROM dlq_planfailure WHERE plan_id = %(plan)s"


def being_replayed(plan_id: UUID) -> None:
    """Show that a plan is replaying the failures of its items, for as long as it is running, paused or following."""
    with connection.cursor() as cursor:
        cursor.execute(_AT, {"plan": plan_id})


def no_longer_replayed(plan_id: UUID) -> None:
    """Forget that: the plan is over."""
    with connection.cursor() as cursor:
        cursor.execute(_AT_NO_LONGER, {"plan": plan_id})
