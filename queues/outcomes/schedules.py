"""Schedules and what became of their newest ticks, for pages. Bounded statements; jobs are read by their ids alone.

Not here: the arithmetic of lines and the sweep that makes jobs of ticks (`queues.schedules`).
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from django.db import connection

from queues.schedule_lines import GRACE_SECONDS, Line

SCHEDULES_SHOWN: Final = 100
TICKS_SHOWN: Final = 30

# What asks for a person comes first, so that the bound never hides it. The table is as small as that of contracts.
_SCHEDULES: Final = """
SELECT s.name, s.job_type_id, c.tier_id, c.enabled, c.paused, c.deferred, s.cron, s.timezone, s.description, s.catch_up,
  s.paused, s.paused_reason, s.paused_by, s.paused_until, s.next_at, s.last_at, s.last_job_at, s.last_job_id,
  s.refused, s.refused_since,
  NOT s.paused AND coalesce(s.next_at < jobs_now() - make_interval(secs => %(overdue)s), false) AS overdue
FROM queues_schedule s JOIN queues_jobtype c ON c.name = s.job_type_id
WHERE %(names)s::text[] IS NULL OR s.name = ANY(%(names)s::text[])
ORDER BY s.refused = 0, overdue DESC, s.name LIMIT %(limit)s
"""

# Index schedule_tick_at: the newest of each schedule, however many there are.
_TICKS: Final = """
SELECT t.schedule, t.id, t.tick_at, t.at, t.outcome, t.job_id, t.ticks, t.detail, t.by
FROM unnest(%(names)s::text[]) AS n (name) CROSS JOIN LATERAL (
  SELECT * FROM queues_scheduletick WHERE schedule = n.name ORDER BY tick_at DESC, id DESC LIMIT %(limit)s
) AS t
ORDER BY t.schedule, t.tick_at, t.id
"""

# A range of one day of schedule_tick_age. A stretch is one row, so what is added up is few rows.
_MISSED: Final = """
SELECT schedule, sum(ticks) FROM queues_scheduletick
WHERE at > jobs_now() - interval '1 day' AND outcome = 'missed' GROUP BY schedule
"""

# What was refused last is among the newest ticks, so this look is short.
_REFUSALS: Final = """
SELECT s.name, s.job_type_id, s.refused, s.refused_since, coalesce(t.detail, '') FROM queues_schedule s
LEFT JOIN LATERAL (
  SELECT detail FROM queues_scheduletick WHERE schedule = s.name AND outcome = 'refused'
  ORDER BY tick_at DESC, id DESC LIMIT 1
) AS t ON true
WHERE s.refused > 0 AND NOT s.paused ORDER BY s.refused_since, s.name LIMIT %(limit)s
"""

_JOBS: Final = "SELECT id, state FROM queues_job WHERE id = ANY(%(ids)s::uuid[])"


@dataclass(frozen=True, kw_only=True)
class TickOf:
    """One tick or press. `outcome`: accepted, missed or refused; a missed one stands for a stretch of `ticks`.

    `state` is its job's now; None where there is none: never made, or no longer kept.
    """

    id: int
    schedule: str
    tick_at: dt.datetime
    at: dt.datetime
    outcome: str
    job_id: UUID | None
    ticks: int
    detail: str
    by: str
    state: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleNow:
    """How a schedule stands. `last_at` is its newest tick that was looked at, `last_job_at` the newest with a job."""

    name: str
    type: str
    tier: int
    type_enabled: bool
    type_paused: bool
    type_deferred: bool
    cron: str
    timezone: str
    description: str
    catch_up: str
    paused: bool
    paused_reason: str
    paused_by: str
    paused_until: dt.datetime | None
    next_at: dt.datetime | None
    """None: its line names no time that comes."""
    last_at: dt.datetime | None
    last_job_at: dt.datetime | None
    last_job_id: UUID | None
    refused: int
    """Ticks in a row that became no job because accepting it was refused."""
    refused_since: dt.datetime | None
    overdue: bool
    """Its next tick is being missed: nobody looked, as when no scheduler runs."""
    words: str = ""
    """Its line, said in English; empty where it cannot be read."""
    missed: int = 0
    """Ticks that were found missed in the last 24 h."""
    last_job_state: str | None = None
    """None: there is no job, or it is no longer kept."""
    ticks: Sequence[TickOf] = field(default=())
    """The newest, oldest first."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A schedule whose last tick was refused. `times`: in a row."""

    name: str
    type: str
    times: int
    since: dt.datetime
    detail: str


_NAMES: Final = (
    "name", "type", "tier", "type_enabled", "type_paused", "type_deferred", "cron", "timezone", "description",
    "catch_up", "paused", "paused_reason", "paused_by", "paused_until", "next_at", "last_at", "last_job_at",
    "last_job_id", "refused", "refused_since", "overdue",
)  # fmt: skip
_TICK_NAMES: Final = ("schedule", "id", "tick_at", "at", "outcome", "job_id", "ticks", "detail", "by")


def board(limit: int = SCHEDULES_SHOWN) -> list[ScheduleNow]:
    """Return at most so many schedules with their newest ticks, those that ask for a person first, then by name.

    Four statements, two where there is no schedule.
    """
    return _filled(_read(names=None, limit=limit))


def named(name: str) -> ScheduleNow | None:
    """Return one schedule with its newest ticks."""
    found = _filled(_read(names=[name], limit=1))
    return found[0] if found else None


def refusals(*, limit: int) -> list[Refusal]:
    """Return the schedules that are on and whose last tick was refused, the longest first."""
    names = ("name", "type", "times", "since", "detail")
    return [Refusal(**dict(zip(names, row, strict=True))) for row in _rows(_REFUSALS, {"limit": limit})]


def _read(*, names: Sequence[str] | None, limit: int) -> list[dict[str, Any]]:
    rows = _rows(_SCHEDULES, {"names": names, "limit": limit, "overdue": GRACE_SECONDS})
    return [dict(zip(_NAMES, row, strict=True)) for row in rows]


def _filled(found: Sequence[dict[str, Any]]) -> list[ScheduleNow]:
    if not found:
        return []
    rows = _rows(_TICKS, {"names": [one["name"] for one in found], "limit": TICKS_SHOWN})
    ticks = [dict(zip(_TICK_NAMES, row, strict=True)) for row in rows]
    states = _states({one["job_id"] for one in ticks} | {one["last_job_id"] for one in found})
    missed = {name: int(n) for name, n in _rows(_MISSED, {})}
    by_name: dict[str, list[TickOf]] = {}
    for one in ticks:
        by_name.setdefault(one["schedule"], []).append(TickOf(**one, state=states.get(one["job_id"])))
    return [
        ScheduleNow(
            **one,
            words=Line(one["cron"], dt.UTC).words(),
            missed=missed.get(one["name"], 0),
            last_job_state=states.get(one["last_job_id"]),
            ticks=by_name.get(one["name"], ()),
        )
        for one in found
    ]


def _states(ids: Iterable[UUID | None]) -> dict[UUID | None, str]:
    wanted = sorted(one for one in ids if one is not None)
    return dict(_rows(_JOBS, {"ids": wanted})) if wanted else {}


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
