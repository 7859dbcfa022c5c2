"""The read side of schedules: what a page is told, in bounded statements on indexes, however many ticks there are."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import lifecycle
from queues.contract_switches import database_now
from queues.models import JobType, Schedule, ScheduleTick
from queues.outcomes.schedules import SCHEDULES_SHOWN, TICKS_SHOWN, board, named
from tests.factories import accept, analyze, claim, confirmed, make_type, sql

pytestmark = pytest.mark.django_db
NAME = "nightly"
KIND = "report.build"


def ago(**span: float) -> dt.datetime:
    return database_now() - dt.timedelta(**span)


def make_schedule(name: str = NAME, **values: Any) -> Schedule:
    """Make a schedule whose next tick is in an hour, and its type."""
    if not JobType.objects.filter(name=KIND).exists():
        make_type(KIND, tier_id=3)
    usual = {"job_type_id": KIND, "cron": "0 3 * * *", "next_at": database_now() + dt.timedelta(hours=1)}
    return Schedule.objects.create(name=name, **{**usual, **values})


def tick(name: str = NAME, *, minutes: float = 1, outcome: str = "accepted", **values: Any) -> ScheduleTick:
    """Let a tick have been so many minutes ago, and seen at once."""
    at = ago(minutes=minutes)
    return ScheduleTick.objects.create(schedule=name, outcome=outcome, **{"tick_at": at, "at": at, **values})


def test_a_schedule_tells_what_its_newest_ticks_came_to() -> None:
    """Oldest first, with the states that the jobs have now; a press is a tick as well."""
    make_schedule()
    first, second, third = accept(3, kind=KIND)
    assert lifecycle.settle([confirmed(run) for run in claim([first])])
    [running] = claim([second])
    tick(minutes=5, job_id=first)
    tick(minutes=4, outcome="missed", ticks=7)
    tick(minutes=3, job_id=second)
    tick(minutes=2, outcome="refused", detail="The type is disabled.")
    tick(minutes=1, job_id=third, by="ann")
    gone = tick(minutes=600, job_id=uuid4())
    Schedule.objects.update(last_job_id=third, last_job_at=ago(minutes=1), refused=1, refused_since=ago(minutes=2))
    [one] = board()
    assert [(each.outcome, each.state, each.ticks, each.by) for each in one.ticks] == [
        ("accepted", None, 1, ""),
        ("accepted", "confirmed", 1, ""),
        ("missed", None, 7, ""),
        ("accepted", "processing", 1, ""),
        ("refused", None, 1, ""),
        ("accepted", "accepted", 1, "ann"),
    ]
    assert one.ticks[0].id == gone.pk
    assert running.id == second
    assert (one.name, one.type, one.tier, one.cron, one.timezone) == (NAME, KIND, 3, "0 3 * * *", "UTC")
    assert (one.last_job_id, one.last_job_state, one.refused, one.missed) == (third, "accepted", 1, 7)
    assert one.words == "At 03:00 every day"
    assert (one.paused, one.overdue, one.type_enabled, one.type_paused, one.type_deferred) == (False,) * 2 + (
        True, False, False,
    )  # fmt: skip
    assert named(NAME) == one
    assert named("no.such") is None


def test_a_job_that_is_no_longer_kept_has_no_state() -> None:
    make_schedule(last_job_id=uuid4())
    [one] = board()
    assert one.last_job_id is not None
    assert (one.last_job_state, list(one.ticks)) == (None, [])


def test_missed_ticks_are_those_found_in_the_last_day() -> None:
    """A stretch counts with all its ticks, also one that was missed before and seen only now."""
    make_schedule()
    make_schedule("other")
    tick(minutes=60 * 25, outcome="missed", ticks=500)
    tick(minutes=60 * 23, outcome="missed", ticks=3)
    tick(minutes=60 * 30, outcome="missed", ticks=40, at=ago(minutes=1))
    tick(minutes=1, outcome="refused")
    assert {one.name: one.missed for one in board()} == {NAME: 43, "other": 0}


@pytest.mark.parametrize(
    ("values", "overdue"),
    [
        ({"late": 59}, False),
        ({"late": 62}, True),
        ({"late": 62, "paused": True}, False),
        ({"late": None}, False),
    ],
)
def test_a_tick_that_nobody_looked_at_is_overdue(values: dict[str, Any], overdue: bool) -> None:
    late = values.pop("late")
    make_schedule(next_at=None if late is None else ago(seconds=late), **values)
    assert [one.overdue for one in board()] == [overdue]


def test_what_asks_for_a_person_comes_first_and_no_bound_hides_it() -> None:
    for name in ("a", "b", "c", "x-late", "y-bad"):
        make_schedule(name)
    Schedule.objects.filter(name="x-late").update(next_at=ago(minutes=5))
    Schedule.objects.filter(name="y-bad").update(refused=2)
    assert [one.name for one in board()] == ["y-bad", "x-late", "a", "b", "c"]
    assert [one.name for one in board(limit=3)] == ["y-bad", "x-late", "a"]


def test_only_the_newest_ticks_are_read_and_by_their_time() -> None:
    make_schedule()
    made = [tick(minutes=n) for n in range(1, TICKS_SHOWN + 6)]
    [one] = board()
    assert [each.id for each in one.ticks] == [each.pk for each in reversed(made[:TICKS_SHOWN])]


def test_statements_do_not_grow() -> None:
    """One where there is nothing; four for one schedule or a hundred."""

    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            board()
        return len(captured)

    assert statements() == 1
    make_schedule()
    tick(job_id=accept(1, kind=KIND)[0])
    assert statements() == 4
    for index in range(30):
        make_schedule(f"more.{index}")
        for n in range(3):
            tick(f"more.{index}", minutes=n)
    assert statements() == 4


class _Captured:
    """Keeps statements, so that they can be explained."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, execute: Any, statement: str, params: Any, many: bool, context: Any) -> Any:
        self.asked.append((statement, params))
        return execute(statement, params, many, context)


def _buffers(statement: str, params: Any) -> tuple[int, str]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {statement}", params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    [top] = [line for line in plan.split("\n") if "Buffers: shared hit=" in line][:1]
    hit = top.split("hit=")[1].split()[0]
    read = top.split("read=")[1].split()[0] if "read=" in top else "0"
    return int(hit) + int(read), plan


def test_a_month_of_ticks_costs_what_a_day_does() -> None:
    """DESIGN 2, promise 10: 20,000 ticks of a schedule are neither read nor sorted, and of jobs only those named."""
    make_schedule(cron="* * * * *")
    make_schedule("other")
    job_ids = accept(3, kind=KIND)
    sql(
        "INSERT INTO queues_scheduletick (schedule, tick_at, at, outcome, ticks, detail, by)"
        " SELECT %s, jobs_now() - n * interval '2 min', jobs_now() - n * interval '2 min', 'accepted', 1, '', ''"
        " FROM generate_series(3, 20000) AS n",
        NAME,
    )
    for n, job_id in enumerate(job_ids):
        tick(minutes=n, job_id=job_id)
    analyze("queues_scheduletick", "queues_job")
    with connection.execute_wrapper(asked := _Captured()):
        [_, one] = board()
    assert (one.name, len(one.ticks)) == ("other", 0)
    by_start = {statement.split()[1]: (statement, params) for statement, params in asked.asked}
    assert len(asked.asked) == 4
    ticks, plan = _buffers(*by_start["t.schedule,"])
    assert "Index Scan Backward using schedule_tick_at" in plan, plan
    assert ticks < 100, plan
    # Of one day, and of that only what was missed.
    _, plan = _buffers(*by_start["schedule,"])
    assert "schedule_tick_missed" in plan, plan
    assert "Rows Removed by Filter" not in plan, plan
    _, plan = _buffers(*by_start["id,"])
    days = {f"queues_job_{day}" for day in re.findall(r" on queues_job_(\d+)", plan)}
    assert days == {name for (name,) in sql("SELECT DISTINCT tableoid::regclass::text FROM queues_job")}, plan


@pytest.mark.parametrize("line", ["61 * * * *", "soon", "", "* * * * *#5", "٣ * * * *", "1" * 192 + " * * * *"])
def test_a_line_that_an_older_release_let_in_breaks_nothing(line: str) -> None:
    make_schedule(cron=line)
    assert [(one.cron, one.words) for one in board()] == [(line, "")]


def test_the_usual_bound_is_given() -> None:
    make_schedule()
    for index in range(SCHEDULES_SHOWN):
        make_schedule(f"more.{index:03}")
    assert len(board()) == SCHEDULES_SHOWN
    assert len(board(SCHEDULES_SHOWN + 1)) == SCHEDULES_SHOWN + 1
