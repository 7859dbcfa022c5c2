"""How lifecycle statements reach the database: ids as literals on the client, never prepared (DESIGN.md section 7)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

DELTA = """
INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
SELECT d.at, m.type, m.tier, d.measure, d.bucket, sum(d.n), max(d.w)
FROM moved m CROSS JOIN LATERAL (VALUES {rows}) AS d (at, measure, bucket, n, w)
WHERE d.n <> 0 AND d.at IS NOT NULL
GROUP BY d.at, m.type, m.tier, d.measure, d.bucket
"""
"""Counts of one statement, grouped. `moved` names the rows that it changed."""

STATE = "(j.state || '')"
"""The state as an expression: a statement that names its ids must find them by the primary key. With the bare column
the planner takes a partial index of some state when it believes that few rows are in it, and reads them all."""

EPOCH = "to_timestamp(0)"
"""The time of counts that have none: how many jobs are in a state now."""


def minute(column: str) -> str:
    """Return SQL for the minute of a time."""
    return f"date_trunc('minute', {column})"


def delta(*rows: tuple[str, str, str, str] | tuple[str, str, str, str, str]) -> str:
    """Return the delta CTE's body. Shape of a row: SQL for at, measure, bucket, n, and the window where it matters."""
    values = ", ".join(
        f"({at}, {measure}, ({bucket})::smallint, ({n})::integer, {window[0] if window else '0'})"
        for at, measure, bucket, n, *window in rows
    )
    return DELTA.format(rows=values)


def uuids(ids: Iterable[UUID]) -> str:
    """Return ids as an array literal; the driver's own lists cost ten times as much."""
    return "{" + ",".join(map(str, ids)) + "}"


def records(rows: Iterable[Any]) -> str:
    """Return dataclasses as one JSON text for `json_to_recordset`."""
    return msgspec.json.encode(list(rows)).decode()


def execute(sql: str, params: Mapping[str, Any] | Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run one statement on the caller's connection and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall()) if cursor.description else []
