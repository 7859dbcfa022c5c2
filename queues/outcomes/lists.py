"""Pages of jobs, newest first: which index answers a filter, and the bound where none does.

Not here: one job with everything (the model), counting.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from django.db import connection

from queues.states import OPEN, WAITING, JobState

LOOK_AT_MOST: Final = 10_000
"""Rows that a filter without an index of its own may look at in one request."""
PAGE: Final = 50
LOOK_FIRST: Final = 4 * PAGE
"""Rows that a list without a filter looks at first: probes are left out of it, and mostly few lie between."""
_LINEAGE_MAX: Final = 50


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """What a list shows. `dead_letters` are dead jobs that nobody has resolved.

    `fingerprint`, with a type and a reason: those of one failure; empty are those without an error.
    """

    type: str | None = None
    tiers: tuple[int, ...] = ()
    state: str | None = None
    reason: str | None = None
    key: str | None = None
    group: str | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    dead_letters: bool = False
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One line of a list."""

    id: UUID
    type: str
    tier: int
    state: str
    dedupe_key: str | None
    group: str | None
    accepted_at: dt.datetime
    ready_at: dt.datetime
    due_at: dt.datetime | None
    settled_at: dt.datetime | None
    window_seconds: int
    attempt: int
    attempt_limit: int
    worker: str | None
    reason: str | None
    resolution: str | None
    cancel_requested: bool
    error_class: str | None
    message: str | None

    @property
    def lag_seconds(self) -> float | None:
        """Seconds from ready to the end; None while open."""
        return None if self.settled_at is None else max((self.settled_at - self.ready_at).total_seconds(), 0.0)


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Jobs, the ids where its neighbours begin, and how far this request looked."""

    rows: Sequence[JobRow] = field(default_factory=list)
    newer: UUID | None = None
    older: UUID | None = None
    looked: int | None = None
    """How many rows a filter without an index looked at; None when an index answered."""
    complete: bool = True
    """Nothing that fits is left out on the side to which the page was read."""


_COLUMNS: Final = (
    "id", "type", "tier", "state", "dedupe_key", "group", "accepted_at", "ready_at", "due_at", "settled_at",
    "window_seconds", "attempt", "attempt_limit", "worker", "reason", "resolution", "cancel_requested",
)  # fmt: skip
_SELECT: Final = ", ".join(f'j."{name}"' for name in _COLUMNS)
_LAST_ERROR: Final = (
    "left(j.failures -> -1 ->> 'error_class', 120) AS error_class, left(j.failures -> -1 ->> 'message', 300) AS message"
)
_OPEN: Final = ", ".join(f"'{state}'" for state in OPEN)
_WAITING: Final = ", ".join(f"'{state}'" for state in WAITING)
_FROM_JOBS: Final = 'SELECT id, type, tier, state, reason, resolution, "group", fingerprint, probe FROM queues_job'

# Small states are read whole from their partial index; the order is the index's, so that it is the plan.
_SUBSETS: Final[Mapping[str, str]] = {
    JobState.PROCESSING: "state = 'processing' ORDER BY due_at",
    JobState.AWAITING_CONFIRMATION: "state = 'awaiting_confirmation' ORDER BY due_at",
    JobState.ACCEPTED: f"state IN ({_WAITING}) ORDER BY tier, type, priority DESC, due_at",
    JobState.RETRYING: f"state IN ({_WAITING}) ORDER BY tier, type, priority DESC, due_at",
}

# A source that was not read to its end hides what lies beyond the last row read of it: nothing beyond the nearest such
# edge is shown, and the next page begins there. Dead letters are read type by type, so each type is a source.
# The limit inside the lateral join keeps it a probe of one partition for each id, never a join with the table.
_PAGE: Final = """
WITH RECURSIVE {before}looked AS MATERIALIZED ({source}),
edge AS (
  SELECT id FROM (SELECT (array_agg(id ORDER BY id {far}))[1] AS id, count(*) AS n FROM looked GROUP BY {each}) AS e
  WHERE n >= %(cap)s ORDER BY id {order} LIMIT 1
),
hit AS (
  SELECT id FROM looked WHERE {where} AND ((SELECT id FROM edge) IS NULL OR id {within} (SELECT id FROM edge))
  ORDER BY id {order} LIMIT %(limit)s
)
SELECT s.n, (SELECT id FROM edge), {select}, {error}
FROM (SELECT count(*) AS n FROM looked) AS s
LEFT JOIN hit ON true LEFT JOIN LATERAL (SELECT * FROM queues_job WHERE id = hit.id LIMIT 1) AS j ON true
ORDER BY j.id DESC
"""
_LINEAGE: Final = """lineage (id, n) AS (
  SELECT k.job_id, 1 FROM unnest(%(types)s::text[]) AS t (type)
  JOIN queues_dedupekey k ON k.type = t.type AND k.key = %(key)s
  UNION ALL
  SELECT j.replay_of, n + 1 FROM lineage l JOIN queues_job j ON j.id = l.id
  WHERE j.replay_of IS NOT NULL AND n < {most}
), """


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where candidates come from. `lead`: CTEs before it. `cap`: rows that a bounded look reads of each source.

    `first`: a short look, in which a list without a filter finds its page unless many probes lie between.
    """

    sql: str
    cap: int | None = None
    lead: str = ""
    first: bool = False


def jobs(
    wanted: JobFilter,
    *,
    types: Sequence[str],
    counts: Mapping[str, int],
    after: UUID | None = None,
    before: UUID | None = None,
) -> JobPage:
    """Return one page. `types` are all types; `counts` says how many jobs of all types are in each open state.

    A key is looked up, a small state and dead letters are read from their index; anything else looks at the newest
    10,000 jobs (of its type), and the next page goes on from there. Probes are in no list.
    """
    backwards = before is not None
    params = _params(wanted, types=types, after=after, before=before)
    for far in (False, True):
        source = _source(wanted, types=types, counts=counts, backwards=backwards, far=far)
        rows, looked, edge = _look(source, wanted, params, backwards=backwards)
        if len(rows) > PAGE or looked < LOOK_FIRST or not source.first:
            break
    # A list without a filter says how far it looked only if that was not to the end.
    shown = None if source.cap is None or source.first or (far and edge is None) else looked
    return _page(rows, looked=shown, edge=edge, after=after, before=before)


def _look(
    source: _Source, wanted: JobFilter, params: Mapping[str, Any], *, backwards: bool
) -> tuple[list[JobRow], int, UUID | None]:
    """Read from a source. Shape: the rows that fit, how many were looked at, how far that was if not to the end."""
    sql = _PAGE.format(
        before=source.lead, source=source.sql, each="type" if wanted.dead_letters else "()",
        where=_where(wanted, after=params["after"], before=params["before"]), select=_SELECT, error=_LAST_ERROR,
        order="ASC" if backwards else "DESC", far="DESC" if backwards else "ASC", within="<=" if backwards else ">=",
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(sql, {**params, "cap": source.cap})
        found = cursor.fetchall()
    names = (*_COLUMNS, "error_class", "message")
    rows = [JobRow(**dict(zip(names, row[2:], strict=True))) for row in found if row[2] is not None]
    return rows, found[0][0], found[0][1]


def _page(
    rows: list[JobRow], *, looked: int | None, edge: UUID | None, after: UUID | None, before: UUID | None
) -> JobPage:
    more = len(rows) > PAGE
    rows = rows[-PAGE:] if before is not None else rows[:PAGE]
    far = (rows[0] if before is not None else rows[-1]).id if more else edge
    near = (rows[-1] if before is not None else rows[0]).id if rows else before or after
    return JobPage(
        rows=rows,
        newer=far if before is not None else near if after is not None else None,
        older=near if before is not None else far,
        looked=looked,
        complete=far is None,
    )


def _source(
    wanted: JobFilter, *, types: Sequence[str], counts: Mapping[str, int], backwards: bool, far: bool
) -> _Source:
    """Choose where candidates come from. `far`: as many as may be looked at."""
    order = "ASC" if backwards else "DESC"
    if wanted.key is not None:
        return _Source(sql=f"{_FROM_JOBS} JOIN lineage USING (id)", lead=_LINEAGE.format(most=_LINEAGE_MAX))
    page = " AND ".join(("true", *_page_bounds(wanted)))
    if wanted.dead_letters:
        return _dead_letters(wanted, order=order, page=page, types=1 if wanted.type is not None else len(types))
    subset = _SUBSETS.get(wanted.state or "")
    size = sum(counts.get(s, 0) for s in (WAITING if wanted.state in WAITING else (wanted.state or "",)))
    if subset is not None and size < LOOK_AT_MOST:
        return _Source(sql=f"{_FROM_JOBS} WHERE {subset} LIMIT {LOOK_AT_MOST}")
    one_type = " AND type = %(type)s" if wanted.type is not None else ""
    first = not (far or wanted.tiers or wanted.state or wanted.reason or wanted.group)
    limit = LOOK_FIRST if first else LOOK_AT_MOST
    sql = f"{_FROM_JOBS} WHERE {page}{one_type} ORDER BY id {order} LIMIT {limit}"
    return _Source(sql=sql, cap=limit, first=first)


def _dead_letters(wanted: JobFilter, *, order: str, page: str, types: int) -> _Source:
    """Index job_dead (type, id): the newest of each type, then the newest of these.

    Those of one failure are read from job_dead_failure (type, reason, fingerprint, id).
    """
    if wanted.fingerprint is not None:
        same = "= %(fingerprint)s" if wanted.fingerprint else "IS NULL"
        sql = f"""{_FROM_JOBS} WHERE state = 'dead' AND resolution = 'open' AND NOT probe AND type = %(type)s
          AND reason = %(reason)s AND fingerprint {same} AND {page} ORDER BY id {order} LIMIT {PAGE + 1}"""  # noqa: S608 (no value is formatted in)
        return _Source(sql=sql)
    filtered = wanted.reason is not None or bool(wanted.tiers)
    limit = max(LOOK_AT_MOST // max(types, 1), PAGE + 1) if filtered else PAGE + 1
    sql = f"""SELECT d.* FROM unnest(%(types)s::text[]) AS t (type) CROSS JOIN LATERAL (
      {_FROM_JOBS} j
      WHERE j.state = 'dead' AND j.resolution = 'open' AND j.type = t.type AND {page}
      ORDER BY j.id {order} LIMIT {limit}) AS d"""  # noqa: S608 (no value is formatted in)
    return _Source(sql=sql, cap=limit if filtered else None)


def _page_bounds(wanted: JobFilter) -> list[str]:
    bounds = ["(%(after)s::uuid IS NULL OR id < %(after)s)", "(%(before)s::uuid IS NULL OR id > %(before)s)"]
    return [*bounds, *_times(wanted)]


def _times(wanted: JobFilter) -> list[str]:
    """The id begins with its time, so partitions outside are not read."""
    times = []
    if wanted.since is not None:
        times.append("id >= %(first)s")
    if wanted.until is not None:
        times.append("id < %(last)s")
    return times


def _where(wanted: JobFilter, *, after: UUID | None, before: UUID | None) -> str:
    where = ["NOT probe", *_times(wanted)]
    for condition, sql in (
        (after, "id < %(after)s"),
        (before, "id > %(before)s"),
        (wanted.type, "type = %(type)s"),
        (wanted.tiers or None, "tier = ANY(%(tiers)s)"),
        (wanted.state, "state = %(state)s"),
        (wanted.reason, "reason = %(reason)s"),
        (wanted.group, '"group" = %(group)s'),
        (wanted.fingerprint or None, "fingerprint = %(fingerprint)s"),
        (wanted.dead_letters or None, "state = 'dead' AND resolution = 'open'"),
    ):
        if condition is not None:
            where.append(sql)
    return " AND ".join(where)


def _params(wanted: JobFilter, *, types: Sequence[str], after: UUID | None, before: UUID | None) -> dict[str, Any]:
    return {
        "after": after, "before": before, "type": wanted.type, "tiers": list(wanted.tiers), "state": wanted.state,
        "reason": wanted.reason, "key": wanted.key, "group": wanted.group, "fingerprint": wanted.fingerprint,
        "limit": PAGE + 1,
        "types": [wanted.type] if wanted.type is not None else list(types),
        "first": _first_id(wanted.since), "last": _first_id(wanted.until),
    }  # fmt: skip


def _first_id(at: dt.datetime | None) -> UUID | None:
    return None if at is None else UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


# Index job_open by (tier, type) for those that wait; running ones are as few as bodies, and job_lease has them.
_OLDEST: Final = f"""
SELECT {_SELECT}, {_LAST_ERROR} FROM queues_job j WHERE id IN (
  (SELECT id FROM queues_job WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation')
    AND tier = ANY(%(tiers)s::smallint[]) AND type = %(type)s AND NOT probe ORDER BY ready_at LIMIT %(limit)s)
  UNION ALL
  (SELECT id FROM queues_job WHERE state = 'processing' AND tier = ANY(%(tiers)s::smallint[]) AND type = %(type)s
    AND NOT probe ORDER BY ready_at LIMIT %(limit)s)
) ORDER BY ready_at LIMIT %(limit)s
"""  # noqa: S608 (columns only)


def oldest_jobs(name: str, *, tiers: Sequence[int], limit: int) -> list[JobRow]:
    """Return the open jobs of a type that are ready for longest."""
    with connection.cursor() as cursor:
        cursor.execute(_OLDEST, {"type": name, "tiers": list(tiers), "limit": limit})
        names = (*_COLUMNS, "error_class", "message")
        return [JobRow(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
