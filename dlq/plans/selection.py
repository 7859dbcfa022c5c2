"""Which jobs a plan is about: a filter as of a moment, or ids. Counting and freezing them, in one statement each.

A filter chooses what was there at that moment, also what somebody has resolved since: the plan then skips it and says
why. Rows that came later are never swept in.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection

from dlq import sql
from queues.states import DEAD_REASONS

MOST: Final = 100_000
"""Items of one plan."""
WAITING: Final = "waiting"
"""Jobs that wait: accepted, retrying or awaiting their proof. Only to be cancelled."""
DEAD: Final = "dead"


class SelectionInvalid(ValueError):
    """A selection that means nothing. `field` is the one that is wrong."""

    def __init__(self, field: str, words: str) -> None:
        super().__init__(words)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is chosen. `state`: dead (unresolved dead letters) or waiting. `since` and `until` are times of acceptance.

    `fingerprint` may be empty: dead letters without an error. With `ids` nothing else counts.
    """

    type: str | None = None
    tier: int | None = None
    reason: str | None = None
    fingerprint: str | None = None
    group: str | None = None
    state: str = DEAD
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    ids: tuple[UUID, ...] | None = None

    def check(self, *, action: str) -> None:
        """Refuse what means nothing. Raises: SelectionInvalid."""
        if self.state not in (DEAD, WAITING):
            raise SelectionInvalid("state", f"is {DEAD} or {WAITING}")
        if self.state == WAITING and action != "cancel":
            raise SelectionInvalid("state", "jobs that wait can only be cancelled")
        if self.reason is not None and self.reason not in set(DEAD_REASONS):
            raise SelectionInvalid("reason", f"is one of {', '.join(DEAD_REASONS)}")
        if self.state == WAITING and (self.reason is not None or self.fingerprint is not None):
            raise SelectionInvalid("reason", "only dead letters have a reason and a fingerprint")
        if self.ids is not None and not self.ids:
            raise SelectionInvalid("ids", "no job is selected")
        if self.ids is not None and len(self.ids) > MOST:
            raise SelectionInvalid("ids", f"are at most {MOST:,}")

    def as_json(self) -> dict[str, Any]:
        """Return what the plan keeps: of ids only how many."""
        if self.ids is not None:
            return {"ids": len(set(self.ids))}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "ids"}
        return {
            name: value.isoformat() if isinstance(value, dt.datetime) else value
            for name, value in values.items()
            if value is not None
        }


# `resolved` are those that somebody has resolved since the moment of the selection (index job_resolved).
_DEAD: Final = """
SELECT j.id, j.type, j.reason || '/' || left(coalesce(j.fingerprint, ''), 16) AS failure FROM queues_job j
WHERE j.state = 'dead' AND j.resolution = 'open' AND NOT j.probe AND {filter}
UNION ALL
SELECT j.id, j.type, j.reason || '/' || left(coalesce(j.fingerprint, ''), 16) FROM queues_job j
WHERE j.resolution IN ('replayed', 'cancelled', 'ignored') AND NOT j.probe AND j.state = 'dead'
  AND j.resolved_at > %(as_of)s AND {filter}
"""
_WAITING: Final = """
SELECT j.id, j.type, '' AS failure FROM queues_job j
WHERE j.state IN ('accepted', 'retrying', 'awaiting_confirmation') AND NOT j.probe AND {filter}
"""
_IDS: Final = """
SELECT j.id, j.type, CASE j.state WHEN 'dead' THEN j.reason || '/' || left(coalesce(j.fingerprint, ''), 16) ELSE '' END
  AS failure
FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]) AND NOT j.probe AND j.type = ANY(%(types)s::text[])
"""
_CONDITIONS: Final[Mapping[str, str]] = {
    "tier": "j.tier = %(tier)s",
    "reason": "j.reason = %(reason)s",
    "fingerprint": "j.fingerprint = %(fingerprint)s",
    "group": 'j."group" = %(group)s',
    "since": "j.accepted_at >= %(since)s",
    "until": "j.accepted_at < %(until)s",
}
_COUNT: Final = "SELECT count(*) FROM (SELECT 1 FROM ({chosen}) AS c LIMIT %(most)s) AS n"
_FREEZE: Final = """
INSERT INTO dlq_planitem (plan_id, number, job_id, type, failure, state, code, detail, tries, outcome, failing)
SELECT %(plan)s, row_number() OVER (ORDER BY c.id {order}), c.id, c.type, c.failure, 'waiting', '', '', 0, '', false
FROM ({chosen} LIMIT %(most)s) AS c
"""


def count(selection: Selection, *, types: Sequence[str], as_of: dt.datetime) -> int:
    """Count what is chosen, at most MOST + 1."""
    chosen, params = _chosen(selection, types=types, as_of=as_of)
    with connection.cursor() as cursor:
        cursor.execute(_COUNT.format(chosen=chosen), params)
        return int(cursor.fetchone()[0])


def freeze(selection: Selection, *, plan_id: UUID, types: Sequence[str], as_of: dt.datetime, newest_first: bool) -> int:
    """Write the items of a plan, at most MOST + 1; returns how many. In the transaction that makes the plan."""
    chosen, params = _chosen(selection, types=types, as_of=as_of)
    order = "DESC" if newest_first else "ASC"
    with connection.cursor() as cursor:
        cursor.execute(_FREEZE.format(chosen=chosen, order=order), {**params, "plan": plan_id})
        return int(cursor.rowcount)


def now() -> dt.datetime:
    """Return the moment that a look at the selection is of."""
    return sql.clock()


def _chosen(selection: Selection, *, types: Sequence[str], as_of: dt.datetime) -> tuple[str, dict[str, Any]]:
    usable = [name for name in types if selection.type in (None, name)]
    params = {f.name: getattr(selection, f.name) for f in dataclasses.fields(selection) if f.name != "ids"}
    params |= {"types": usable, "as_of": as_of, "most": MOST + 1}
    if selection.ids is not None:
        return _IDS, {**params, "types": list(types), "ids": list(set(selection.ids))}
    conditions = ["j.type = ANY(%(types)s::text[])"]
    conditions.append("j.settled_at <= %(as_of)s" if selection.state == DEAD else "j.accepted_at <= %(as_of)s")
    conditions += [words for name, words in _CONDITIONS.items() if getattr(selection, name) is not None]
    if selection.fingerprint == "":
        conditions = [one if one != _CONDITIONS["fingerprint"] else "j.fingerprint IS NULL" for one in conditions]
    template = _DEAD if selection.state == DEAD else _WAITING
    return template.format(filter=" AND ".join(conditions)), params
