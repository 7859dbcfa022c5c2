"""How lifecycle statements reach the database: ids as literals on the client, never prepared (DESIGN.md section 7)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

from queues.faults import fault
from queues.states import WAITING, WAITING_PROBES

STATE = "(j.state || '')"
"""The state as an expression: a statement that names its ids must find them by the primary key. With the bare column
the planner takes a partial index of some state when it believes that few rows are in it, and reads them all."""

BETWEEN = "j.id BETWEEN %(low)s::uuid AND %(high)s::uuid"
"""The second mention of the jobs that a statement names: enough to prune partitions, and half a millisecond cheaper
to plan than a second list of a hundred ids."""

EPOCH = "to_timestamp(0)"
"""The time of counts that have none: how many jobs are in a state now."""

_WAITING = "(" + ", ".join(f"'open.{state}'" for state in WAITING) + ")"
"""The measures of states that a claim may take."""


FIRST_PLACE = "least(h.now, j.ready_at + make_interval(secs => j.fence * 0.000001))"
"""When a job that is given back is due: by its age, so before all that became ready after it. The microseconds make
each wait a new one for the stage, which remembers what it sent by the due time."""


def bucket(start: str, end: str) -> str:
    """Return SQL for the bucket of the time between two."""
    return f"jobs_bucket(extract(epoch FROM {end} - {start})::float8)"


def minute(column: str) -> str:
    """Return SQL for the minute of a time."""
    return f"date_trunc('minute', {column})"


def delta(*rows: tuple[str, str, str, str] | tuple[str, str, str, str, str]) -> str:
    """Return SQL that writes the counts of one statement, grouped; `moved m` names the rows that it changed.

    Shape of a row: SQL for at, measure, bucket and n, and the window where it matters. A row without a time or with
    n = 0 is not written. The expressions are computed once for each job and grouped before they fan out into rows.
    A probe is in no number of the business: it is only counted as one while it waits, for the stage to find it.
    """
    keys: dict[str, str] = {"m.type": "type", "m.tier": "tier", "m.probe": "probe"}

    def column(sql: str, cast: str) -> str:
        if "m." not in sql:
            return f"({sql})::{cast}"
        return "g." + keys.setdefault(f"({sql})::{cast}", f"k{len(keys)}")

    casts = ("timestamptz", "text", "smallint", "integer", "integer")
    values = ", ".join(
        "(" + ", ".join(column(sql, cast) for sql, cast in zip((*row, "0")[:5], casts, strict=True)) + ")"
        for row in rows
    )
    return f"""
    INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
    SELECT d.at, g.type, g.tier, CASE WHEN g.probe THEN 'open.{WAITING_PROBES}' ELSE d.measure END, d.bucket,
      sum(d.n * g.jobs), max(d.w)
    FROM (
      SELECT {", ".join(f"{sql} AS {name}" for sql, name in keys.items())}, count(*) AS jobs FROM moved m
      GROUP BY {", ".join(map(str, range(1, len(keys) + 1)))}
    ) AS g CROSS JOIN LATERAL (VALUES {values}) AS d (at, measure, bucket, n, w)
    WHERE d.n <> 0 AND d.at IS NOT NULL AND (NOT g.probe OR d.measure IN {_WAITING})
    GROUP BY 1, 2, 3, 4, 5
    """


def uuids(ids: Iterable[UUID]) -> str:
    """Return ids as an array literal; the driver's own lists cost ten times as much."""
    return "{" + ",".join(map(str, ids)) + "}"


def named(ids: Sequence[UUID]) -> dict[str, Any]:
    """Return the parameters of a statement that names its jobs: `ids`, and `low` and `high` for BETWEEN."""
    return {"ids": uuids(ids), "low": min(ids, default=None), "high": max(ids, default=None)}


def records(rows: Iterable[Any]) -> str:
    """Return records (dataclasses or structs) as one JSON text for `json_to_recordset`."""
    return msgspec.json.encode(list(rows)).decode()


def execute(sql: str, params: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run one statement on the caller's connection and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []


def transition(name: str, sql: str, params: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run a statement that moves jobs; a test may stop it before and after (`queues.faults`)."""
    fault(f"{name}.before")
    rows = execute(sql, params)
    fault(f"{name}.after")
    return rows
