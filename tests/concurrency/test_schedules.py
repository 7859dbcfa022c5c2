"""Schedulers beside each other, and beside people, make one job of a tick and of a press."""

from __future__ import annotations

from typing import Final

import pytest

from queues import schedule_ticks, schedules
from queues.models import AuditEntry, Job, Schedule, ScheduleTick
from tests.concurrency.rivals import outcomes, together
from tests.factories import make_type, sql

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("transactional_db")]
KIND: Final = "report.make"
NAMES: Final = [f"s{number}" for number in range(6)]
ROUNDS: Final = 3


@pytest.fixture(autouse=True)
def _schedules(transactional_db: None) -> None:
    make_type(KIND)
    make_type("report.newest", overlap="keep_last")
    for name in NAMES:
        kind = "report.newest" if name == "s0" else KIND
        fields = {"job_type": kind, "cron": "* * * * *", "catch_up": "all"}
        schedules.save(name, fields, actor="ann", reason="test")


def all_due(minutes: int = 2) -> None:
    """Let the last ticks of every schedule be unseen; those that are seen already are due again."""
    sql(f"UPDATE queues_schedule SET next_at = date_trunc('minute', jobs_now()) - interval '{minutes} minutes'")


def sweep() -> bool:
    return schedule_ticks.sweep()


def one_job_a_tick() -> None:
    """Assert that ticks and jobs are pairs."""
    ticks = list(ScheduleTick.objects.filter(by=""))
    assert {tick.outcome for tick in ticks} == {"accepted"}
    assert len({(tick.schedule, tick.tick_at) for tick in ticks}) == len(ticks)
    assert {tick.job_id for tick in ticks} == {job.id for job in Job.objects.exclude(dedupe_key__contains=":press:")}
    assert len({tick.job_id for tick in ticks}) == len(ticks)


def test_many_schedulers_make_one_job_of_a_tick() -> None:
    """I-22: at the same moment, and again when the times of the schedules were set back."""
    for _ in range(ROUNDS):
        all_due()
        outcomes(together(*[sweep] * 4))
        one_job_a_tick()
        # At least three ticks each, whatever the minute.
        assert ScheduleTick.objects.count() >= 3 * len(NAMES)
        assert not Schedule.objects.filter(next_at__lte=sql("SELECT jobs_now() - interval '60 s'")[0][0]).exists()


def test_two_clicks_beside_a_sweep_make_one_job() -> None:
    all_due()

    def press() -> schedules.Pressed:
        return schedules.run_now("s1", actor="ann", reason="test", after=0)

    def swept() -> schedules.Pressed:
        sweep()
        return schedules.Pressed(tick_id=0, job_id=None, fresh=False)

    *pressed, _, _ = outcomes(together(press, press, press, swept, swept))
    assert len({one.tick_id for one in pressed}) == 1
    assert [one.fresh for one in pressed].count(True) == 1
    assert Job.objects.filter(dedupe_key__contains=":press:").count() == 1
    sweep()
    one_job_a_tick()


def test_a_pause_beside_sweeps_leaves_no_tick_between() -> None:
    """Whoever is first, a tick is a job or missed; none is both."""
    all_due(minutes=4)
    before = {row.name: row.next_at for row in Schedule.objects.all()}

    def pause() -> bool:
        for name in NAMES:
            schedules.pause(name, actor="ann", reason="test")
        return False

    outcomes(together(sweep, pause, sweep))
    for row in Schedule.objects.all():
        was = before[row.name]
        assert row.paused
        assert row.next_at is not None
        assert was is not None
        counted = sum(ScheduleTick.objects.filter(schedule=row.name).values_list("ticks", flat=True))
        assert counted == (row.next_at - was).total_seconds() // 60
        accepted = ScheduleTick.objects.filter(schedule=row.name, outcome="accepted").count()
        assert Job.objects.filter(dedupe_key__startswith=f"schedule:{row.name}:").count() == accepted
    assert AuditEntry.objects.filter(action="schedule.paused").count() == len(NAMES)
