"""Partitions and jobs of days gone by, made by hand: the database's clock makes none."""

from __future__ import annotations

import datetime as dt
from typing import Any
from uuid import UUID

from queues.models import Job
from queues.states import JobState
from tests.factories import COLUMNS_OF, TYPE, get, set_columns, sql

ID_OF_DAY = "(substr(jobs_day_floor(%s)::text, 1, 13) || substr(jobs_uuid7()::text, 14))::uuid"


def days_ago(days: int) -> dt.date:
    """Return a day before today, as the database counts them."""
    day: dt.date = sql("SELECT (jobs_now() AT TIME ZONE 'UTC')::date - %s", days)[0][0]
    return day


def part_of(day: dt.date) -> str:
    """Return the name of a day's partition."""
    return f"queues_job_{day:%Y%m%d}"


def make_partition(day: dt.date) -> str:
    """Make the partition of a day as jobs_make_partitions does."""
    part = part_of(day)
    sql(f"CREATE TABLE {part} (LIKE queues_job INCLUDING ALL)")
    low, high = sql("SELECT jobs_day_floor(%s)::text, jobs_day_floor(%s)::text", day, day + dt.timedelta(1))[0]
    sql(f"ALTER TABLE queues_job ATTACH PARTITION {part} FOR VALUES FROM ('{low}') TO ('{high}')")
    return part


def days() -> set[dt.date]:
    """Return the days that have a partition."""
    rows = sql("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'queues_job'::regclass")
    return {dt.datetime.strptime(name[-8:], "%Y%m%d").date() for (name,) in rows}


def make_old_job(
    day: dt.date,
    state: JobState = JobState.CONFIRMED,
    *,
    kind: str = TYPE,
    key: str | None = None,
    settled_days_ago: float | None = None,
    **overrides: Any,
) -> Job:
    """Insert a job with an id of that day; it settled at that day's noon or so many days ago."""
    job_id: UUID = sql(
        f"""
        INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
          expires_at, accepted_at, request_hash, idempotency_key, root, payload, dedupe_key)
        SELECT id, %s, 2, 1, 5, 60, at, at, at + interval '300 days', at, sha256('{{}}'), 'jb_' || id, id, '{{}}', %s
        FROM (SELECT {ID_OF_DAY} AS id, %s::timestamp AT TIME ZONE 'UTC' AS at) AS t RETURNING id
        """,
        kind,
        key,
        day,
        day,
    )[0][0]
    if key is not None:
        sql(
            "INSERT INTO queues_dedupekey (type, key, request_hash, job_id) SELECT type, dedupe_key, request_hash, id"
            " FROM queues_job WHERE id = %s",
            job_id,
        )
    if state == JobState.RETRYING:
        sql(f"UPDATE queues_job SET {_assign(JobState.PROCESSING)} WHERE id = %s", job_id)
    columns = {f"raw_{name}": value for name, value in COLUMNS_OF[state].items() if name not in overrides}
    if columns["raw_settled_at"] != "NULL":
        columns["raw_settled_at"] = (
            "accepted_at + interval '12 hours'"
            if settled_days_ago is None
            else f"jobs_now() - interval '{settled_days_ago} days'"
        )
    set_columns(job_id, state=state.value, **columns, **overrides)
    return get(job_id)


def _assign(state: JobState) -> str:
    return ", ".join([f"state = '{state}'", *(f"{name} = {value}" for name, value in COLUMNS_OF[state].items())])


def ids_of(day: dt.date) -> set[UUID]:
    """Return the jobs of a day."""
    return {
        i
        for (i,) in sql(
            "SELECT id FROM queues_job WHERE id >= jobs_day_floor(%s) AND id < jobs_day_floor(%s)",
            day,
            day + dt.timedelta(1),
        )
    }
