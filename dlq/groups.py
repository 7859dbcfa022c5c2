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
from queues.models import Job
from queues.states import JobState

HOURS: Final = 24
PAGE: Final = 50
LOOK_AT_MOST: Final = 10_000
"""Groups that a list without an index of its own looks at."""
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


@dataclass(frozen=True, kw_only=True)
class GroupPage:
    """Groups, and where older ones begin."""

    rows: Sequence[GroupRow]
    older: Cursor | None = None


_OF_COUNT: Final = ("id", "type", "tier", "reason", "fingerprint", "died", "open", "first_at", "last_at")
_OF_GROUP: Final = {
    "error_class": "''", "message": "''", "frame": "''", "state": "'open'", "state_at": "NULL", "state_by": "''",
    "state_reason": "''", "ignored_until": "NULL", "note": "''", "owner": "''", "regressed_at": "NULL",
    "regressions": "0", "sample": "NULL", "plan_id": "NULL", "triage": "NULL", "triaged_at": "NULL",
}  # fmt: skip
"""Column → its value while the service has not met the failure."""
_NAMES: Final = (*_OF_COUNT, *_OF_GROUP)
_SELECT: Final = ", ".join(
    [f"f.{name}" for name in _OF_COUNT] + [f"coalesce(g.{name}, {none}) AS {name}" for name, none in _OF_GROUP.items()]
)
_FROM: Final = "queues_failurecount f LEFT JOIN dlq_failuregroup g ON g.id = f.id"
_BARS: Final = """ARRAY(SELECT coalesce(h.died, 0) FROM generate_series(
    date_trunc('hour', jobs_now()) - interval '23 hours', date_trunc('hour', jobs_now()), interval '1 hour') AS s (at)
  LEFT JOIN queues_failurehour h ON h.failure_id = p.id AND h.at = s.at ORDER BY s.at)"""
_OPEN: Final = "SELECT count(*) FROM (SELECT 1 FROM queues_failurecount WHERE open > 0 LIMIT %(most)s) AS n"
_LIST: Final = """
WITH p AS MATERIALIZED (
  SELECT {columns} FROM {source} WHERE {where} ORDER BY f.tier, f.last_at DESC, f.id DESC LIMIT %(limit)s
)
SELECT p.*, {bars} FROM p ORDER BY p.tier, p.last_at DESC, p.id DESC
"""


def groups(wanted: GroupFilter, *, after: Cursor | None = None, limit: int = PAGE) -> GroupPage:
    """Return one page of groups, tier 1 first, then those that had a death last."""
    where = ["f.type = ANY(%(types)s::text[])"]
    if wanted.state == "open":
        where += ["f.open > 0", "coalesce(g.state, 'open') IN ('open', 'replaying', 'resolved')"]
    elif wanted.state == "ignored":
        where += ["g.state = 'ignored'"]
    elif wanted.state == "resolved":
        where += ["(g.state = 'resolved' OR f.open <= 0)"]
    for name in ("tier", "reason"):
        if getattr(wanted, name) is not None:
            where.append(f"f.{name} = %({name})s")
    params: dict[str, Any] = {
        "types": [name for name in wanted.types if wanted.type in (None, name)], "tier": wanted.tier,
        "reason": wanted.reason, "limit": limit + 1,
    }  # fmt: skip
    if after is not None:
        where.append("f.tier >= %(after_tier)s AND (f.tier > %(after_tier)s OR (f.last_at, f.id) < (%(at)s, %(id)s))")
        params |= {"after_tier": after[0], "at": after[1], "id": after[2]}
    rows = _read(" AND ".join(where), params)
    more = len(rows) > limit
    rows = rows[:limit]
    return GroupPage(rows=rows, older=(rows[-1].tier, rows[-1].last_at, rows[-1].id) if more else None)


def group(group_id: int) -> GroupRow | None:
    """Return one group."""
    rows = _read("f.id = %(id)s", {"id": group_id, "limit": 1})
    return rows[0] if rows else None


def group_of(job: Job) -> GroupRow | None:
    """Return the group of a dead letter; None before the fold has counted it."""
    if job.state != JobState.DEAD or job.probe:
        return None
    where = "f.type = %(type)s AND f.reason = %(reason)s AND f.fingerprint = %(fingerprint)s"
    params = {"type": job.type, "reason": job.reason, "fingerprint": (job.fingerprint or "")[:16], "limit": 1}
    rows = _read(where, params)
    return rows[0] if rows else None


def open_groups() -> int:
    """Count the groups with unresolved dead letters, up to COUNTED_MOST."""
    found = sql.rows(_OPEN, {"most": COUNTED_MOST})
    return int(found[0][0])


def _read(where: str, params: dict[str, Any]) -> list[GroupRow]:
    statement = _LIST.format(columns=_SELECT, source=_FROM, where=where, bars=_BARS)
    names = (*_NAMES, "hours")
    found = []
    for row in sql.rows(statement, params):
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
    _make([group_id])
    found = FailureGroup.objects.select_for_update().filter(id=group_id).first()
    if found is None:
        raise GroupNotFound(str(group_id))
    return found


_MAKE: Final = """
INSERT INTO dlq_failuregroup (id, type, reason, fingerprint, error_class, message, frame, state, state_at, state_by,
  state_reason, note, owner, died_before, regressions)
SELECT f.id, f.type, f.reason, f.fingerprint, '', '', '', 'open', jobs_clock(), '', '', '', '', 0, 0
FROM queues_failurecount f WHERE {which} ON CONFLICT DO NOTHING
"""


def _make(ids: Sequence[int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_MAKE.format(which="f.id = ANY(%(ids)s::bigint[])"), {"ids": list(ids)})


_OF_PLAN: Final = """f.id IN (
  SELECT f.id FROM (SELECT DISTINCT type, failure FROM dlq_planitem WHERE plan_id = %(plan)s AND failure <> '') AS i
  JOIN queues_failurecount f ON f.type = i.type AND f.reason = split_part(i.failure, '/', 1)
    AND f.fingerprint = split_part(i.failure, '/', 2))"""
_BEING_REPLAYED: Final = f"""
UPDATE dlq_failuregroup f SET state = 'replaying', state_at = jobs_clock(), state_by = p.created_by,
  state_reason = '', plan_id = p.id
FROM dlq_replayplan p WHERE p.id = %(plan)s AND f.state <> 'ignored' AND {_OF_PLAN}
"""  # noqa: S608 (a constant)
# The fold may be a second behind: a group with dead letters left is open again, and the service resolves it later. What
# a person said of it meanwhile (ignored, resolved) stands.
_NO_LONGER_REPLAYED: Final = """
UPDATE dlq_failuregroup SET plan_id = NULL,
  state = CASE state WHEN 'replaying' THEN 'open' ELSE state END,
  state_at = CASE state WHEN 'replaying' THEN jobs_clock() ELSE state_at END,
  state_by = CASE state WHEN 'replaying' THEN 'system' ELSE state_by END
WHERE plan_id = %(plan)s
"""


def being_replayed(plan_id: UUID) -> None:
    """Show that a plan is replaying these failures, also those that the service has not met."""
    with connection.cursor() as cursor:
        cursor.execute(_MAKE.format(which=_OF_PLAN), {"plan": plan_id})
        cursor.execute(_BEING_REPLAYED, {"plan": plan_id})


def no_longer_replayed(plan_id: UUID) -> None:
    """Take that back: the plan has ended or stopped."""
    with connection.cursor() as cursor:
        cursor.execute(_NO_LONGER_REPLAYED, {"plan": plan_id})
