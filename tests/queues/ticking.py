"""What tests of schedules share: a clock of today, a schedule of every minute, what became of its ticks."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

from queues import schedules
from queues.models import Job, JobType, Schedule, ScheduleTick
from tests.factories import make_type, sql

NAME: Final = "nightly"
KIND: Final = "report.make"
WHO: Final[dict[str, Any]] = {"actor": "ann", "reason": "test"}
Shift = Callable[[str], None]


class Clock:
    """The database's clock, set to times of today, so that jobs have a partition."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift
        self._midnight: dt.datetime = sql("SELECT date_trunc('day', statement_timestamp(), 'UTC')")[0][0]
        self.set("10:00:20")

    def at(self, text: str) -> dt.datetime:
        """Return a time of today, in UTC."""
        return dt.datetime.combine(self._midnight, dt.time.fromisoformat(text), tzinfo=dt.UTC)

    def set(self, text: str) -> None:
        """Let it be so late."""
        [(real,)] = sql("SELECT statement_timestamp()")
        self._shift(f"{(self.at(text) - real).total_seconds()} seconds")


def make(cron: str = "* * * * *", **fields: Any) -> Schedule:
    """Make a schedule as the admin does, with its type if that is not there."""
    if not JobType.objects.filter(name=KIND).exists():
        make_type(KIND)
    given = {"job_type": KIND, "cron": cron, "payload": '{"at": "{tick}", "day": "{date}"}', **fields}
    return schedules.save(given.pop("name", NAME), given, **WHO)


def now_of() -> Schedule:
    return Schedule.objects.get(name=NAME)


def ticks() -> list[tuple[str, str, int]]:
    """Return what became of ticks: time, outcome, how many."""
    found = ScheduleTick.objects.filter(schedule=NAME).order_by("tick_at", "id")
    return [(f"{one.tick_at:%H:%M}", one.outcome, one.ticks) for one in found]


def jobs() -> list[str]:
    """Return the dedupe keys of all jobs, without what they begin with and the date."""
    return [str(job.dedupe_key).rpartition("T")[2] for job in Job.objects.order_by("id")]
