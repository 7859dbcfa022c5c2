"""Whose turn it is to merge the jobs of a type and group, and what waits and runs there."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from queues.lifecycle.sql import execute, records

MERGED_MOST: Final = 1000
"""So many waiting jobs of a group lose their place at once; a longer backlog, from before the rule, goes in steps."""
MERGED_IN_ALL: Final = 10_000
"""So many of all groups of one accept together."""
MERGED_LEAST: Final = 4
"""So many of each group in any case: the newest, the one that keeps its place, a retry, and one of a backlog."""

# In one order for all, and with the rows that are there already: whoever comes later waits for the commit.
TAKE = """
INSERT INTO queues_overlapstate (type, "group", touched_at)
SELECT i.type, i."group", jobs_clock() FROM unnest(%(types)s::text[], %(groups)s::text[]) AS i (type, "group")
ORDER BY i.type, i."group"
ON CONFLICT (type, "group") DO UPDATE SET touched_at = excluded.touched_at
"""
# A new snapshot: the statement above may have waited for jobs that this one has to see.
LOOK = """
SELECT s.type, s."group", jobs_clock(), s.ready_at, s.since, s.newest, CASE WHEN w.keeps THEN s.kept END, w.ids,
  w.fresh, CASE WHEN c.overlap = 'replace'
    THEN ARRAY(SELECT r.id FROM jobs_running_to_merge(s.type, s."group", %(most)s) AS r) ELSE '{}' END
FROM unnest(%(types)s::text[], %(groups)s::text[]) AS i (type, "group")
JOIN queues_overlapstate s ON s.type = i.type AND s."group" = i."group"
JOIN queues_jobtype c ON c.name = s.type
CROSS JOIN LATERAL (
  SELECT coalesce(array_agg(j.id), '{}') AS ids, coalesce(bool_or(j.unbegun AND j.id = s.newest), false) AS fresh,
    coalesce(bool_or(j.unbegun AND j.id = s.kept), false) AS keeps
  FROM jobs_waiting_to_merge(s.type, s."group", %(most)s) AS j
) AS w
"""
NOTE = """
UPDATE queues_overlapstate s SET newest = i.newest, ready_at = i.ready_at, since = i.since, kept = i.kept
FROM json_to_recordset(%(lanes)s::json)
  AS i (type text, "group" text, newest uuid, ready_at timestamptz, since timestamptz, kept uuid)
WHERE s.type = i.type AND s."group" = i."group"
"""
FORGET = """
DELETE FROM queues_overlapstate s USING (
  SELECT type, "group" FROM queues_overlapstate WHERE touched_at < jobs_now() - make_interval(hours => %(hours)s)
  ORDER BY type, "group" LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) AS old WHERE s.type = old.type AND s."group" = old."group" RETURNING 1
"""


class Lane(NamedTuple):
    """What there is of a type and group now.

    `ready_at`: of its newest job. `since`: the earliest that it, or one of those whose place it has, was ready; where a
    group is throttled, the turn that it has; where it waits for quiet, when it began to.
    `kept`: the job that keeps its place, if it waits and never ran. `fresh`: so does the newest.
    `running`: what a newer job stops; of types that replace nothing it is not asked for.
    """

    now: dt.datetime
    ready_at: dt.datetime | None
    since: dt.datetime | None
    newest: UUID | None
    kept: UUID | None
    waiting: list[UUID]
    fresh: bool
    running: list[UUID]


@dataclass(frozen=True, kw_only=True)
class LaneNote:
    """What is written of a type and group after new jobs came, as `Lane` reads it."""

    type: str
    group: str
    newest: UUID
    ready_at: dt.datetime
    since: dt.datetime
    kept: UUID | None


def take_lanes(places: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Lane]:
    """Lock (type, group or "") until the transaction ends, and say what is there.

    Raises: OperationalError with 55P03 when another transaction kept one for too long.
    """
    if not places:
        return {}
    params = {"types": [p[0] for p in places], "groups": [p[1] for p in places], "most": _most(len(places))}
    execute(TAKE, params)
    return {(row[0], row[1]): Lane(*row[2:]) for row in execute(LOOK, params)}


def _most(places: int) -> int:
    return min(MERGED_MOST, max(MERGED_LEAST, MERGED_IN_ALL // places))


def note_lanes(notes: Sequence[LaneNote]) -> None:
    """Write what became of each type and group, in the transaction that has taken them."""
    execute(NOTE, {"lanes": records(notes)})


def forget_lanes(*, hours: int, limit: int) -> int:
    """Forget types and groups into which nothing came for so long; returns how many."""
    return len(execute(FORGET, {"hours": hours, "limit": limit}))
