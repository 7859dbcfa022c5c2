"""A scheduler that is struck while it makes a job of a tick: the tick is one job, whoever dies and who comes next."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
import redis
from django.conf import settings

from queues import broker, schedules
from queues.faults import POINTS
from queues.models import Job, Schedule, ScheduleTick
from tests.factories import make_type, sql
from tests.faults.child import Action, tell
from tests.faults.stories import SCHEDULE_POINTS, STORIES

pytestmark = pytest.mark.concurrency
KIND = "fault.plain"
BEHIND = 3


@pytest.fixture(autouse=True)
def due(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A schedule of every minute whose last ticks nobody saw; no broker in this process, no hints left over."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type(KIND)
    fields = {"job_type": KIND, "cron": "* * * * *", "catch_up": "all"}
    schedules.save("minutes", fields, actor="ann", reason="test")
    sql(f"UPDATE queues_schedule SET next_at = date_trunc('minute', jobs_now()) - interval '{BEHIND} minutes'")
    yield
    with redis.Redis.from_url(settings.BROKER_URL) as client:
        client.delete("tier2")


@pytest.mark.parametrize("action", ["kill", "error", "delay"])
@pytest.mark.parametrize("point", SCHEDULE_POINTS)
def test_a_tick_is_one_job_whatever_strikes(point: str, action: Action) -> None:
    """I-22: job, tick and next time are one commit; another scheduler beside it makes no second job."""
    assert point in POINTS
    begin = Schedule.objects.get().next_at
    assert begin is not None

    def another_scheduler() -> None:
        STORIES["tick"]()
        assert (Job.objects.count() > 0) == (point == "schedules.committed"), "the row of the other one is passed"

    told = tell("tick", point=point, action=action, env={}, meanwhile=another_scheduler)
    assert told.struck
    if action == "kill":
        there = point == "schedules.committed"
        assert (Job.objects.count() > BEHIND, ScheduleTick.objects.count() > BEHIND) == (there, there)
        assert (Schedule.objects.get().next_at != begin) == there
    for _ in range(BEHIND + 2):
        STORIES["tick"]()
    row = Schedule.objects.get()
    assert row.next_at is not None
    due = {begin + dt.timedelta(minutes=n) for n in range(int((row.next_at - begin).total_seconds()) // 60)}
    assert len(due) > BEHIND
    ticks = list(ScheduleTick.objects.all())
    assert {tick.tick_at for tick in ticks} == due
    assert len(ticks) == len(due)
    assert {tick.outcome for tick in ticks} == {"accepted"}
    jobs = {job.id: job.dedupe_key for job in Job.objects.all()}
    assert jobs == {tick.job_id: f"schedule:minutes:{tick.tick_at:%Y-%m-%dT%H:%M:%SZ}" for tick in ticks}
    assert row.refused == 0
