"""The sweep of schedules against a real database: what a tick becomes, outages, clocks, refusals."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from queues import backlog, contracts, faults, schedule_lines, schedule_ticks
from queues.accept import enqueue, enqueue_many
from queues.contract_switches import set_switch
from queues.models import Job, JobType, Schedule, ScheduleTick, Tier
from queues.scheduler import housekeeping
from tests.factories import make_type, sql
from tests.queues.ticking import KIND, NAME, WHO, Clock, Shift, jobs, make, now_of, ticks

pytestmark = pytest.mark.django_db
MINUTE: Final = dt.timedelta(minutes=1)


@pytest.fixture
def clock(shift_clock: Shift) -> Clock:
    return Clock(shift_clock)


class TestTicks:
    def test_a_tick_becomes_one_job(self, clock: Clock) -> None:
        """I-22: with a key of its own, at the time that its line names, and the schedule says which job it was."""
        make("* * * * *", group="customer-1", priority=7)
        assert schedule_ticks.sweep() is False
        assert (ticks(), jobs()) == ([], []), "a new schedule begins with the next tick"
        clock.set("10:01:01")
        schedule_ticks.sweep()
        [job] = Job.objects.all()
        tick = clock.at("10:01:00")
        assert job.dedupe_key == f"schedule:nightly:{tick:%Y-%m-%d}T10:01:00Z"
        assert (job.type, job.group, job.priority, job.state) == (KIND, "customer-1", 7, "accepted")
        assert job.payload == f'{{"at": "{tick:%Y-%m-%d}T10:01:00Z", "day": "{tick:%Y-%m-%d}"}}'
        assert ticks() == [("10:01", "accepted", 1)]
        row = now_of()
        assert (row.last_at, row.last_job_at, row.last_job_id) == (tick, tick, job.id)
        assert row.next_at == tick + MINUTE
        assert schedule_ticks.sweep() is False
        assert len(jobs()) == 1

    def test_its_key_beats_the_template_and_its_type_may_need_one(self, clock: Clock) -> None:
        make_type(KIND, key_required=True, key_template="report-{at}")
        make()
        clock.set("10:01:01")
        schedule_ticks.sweep()
        assert jobs() == ["10:01:00Z"]

    def test_a_paused_or_deferred_type_accepts(self, clock: Clock) -> None:
        make_type(KIND, paused=True)
        make()
        clock.set("10:01:01")
        schedule_ticks.sweep()
        assert ticks() == [("10:01", "accepted", 1)]

    @pytest.mark.parametrize("forgotten", ["queues_dedupekey", "queues_scheduletick"])
    def test_a_tick_that_has_a_job_gets_no_second_one(self, clock: Clock, forgotten: str) -> None:
        """The clock went back. Either will do: the record of the tick, or the key of its job."""
        make()
        clock.set("10:01:01")
        schedule_ticks.sweep()
        sql(f"DELETE FROM {forgotten}")
        Schedule.objects.update(next_at=clock.at("10:01:00"))
        schedule_ticks.sweep()
        assert (jobs(), ticks()) == (["10:01:00Z"], [("10:01", "accepted", 1)])
        assert now_of().next_at == clock.at("10:02:00")

    def test_one_that_goes_wrong_stops_no_other(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each is looked at in a transaction of its own, whatever comes up."""
        make(name="a-bad", payload='{"bad": 1}')
        make()
        clock.set("10:01:01")

        def refuse(items: Any, **kwargs: Any) -> Any:
            if "bad" in items[0].payload:
                raise RuntimeError("a bug, password=hunter2")
            return enqueue_many(items, **kwargs)

        monkeypatch.setattr("queues.schedule_ticks.enqueue_many", refuse)
        schedule_ticks.sweep()
        assert ticks() == [("10:01", "accepted", 1)]
        bad = ScheduleTick.objects.get(schedule="a-bad")
        assert bad.outcome == "refused"
        assert bad.detail.startswith("RuntimeError: a bug")
        assert "hunter2" not in bad.detail

    def test_a_round_is_bounded_and_says_so(self, clock: Clock) -> None:
        for number in range(5):
            make(name=f"s{number}")
        clock.set("10:01:01")
        assert schedule_ticks.sweep(limit=3) is True
        assert Job.objects.count() == 3
        assert schedule_ticks.sweep(limit=3) is False
        assert Job.objects.count() == 5

    def test_nothing_due_costs_one_statement(self, clock: Clock) -> None:
        for number in range(20):
            make(name=f"s{number}")
        with CaptureQueriesContext(
            connection,
        ) as queries:
            schedule_ticks.sweep()
        assert len([q for q in queries if "SAVEPOINT" not in q["sql"]]) == 1

    def test_a_line_that_cannot_be_read_is_set_aside(self, clock: Clock) -> None:
        """An older or newer release wrote it: it says so, holds up nothing, and goes on when it can be read."""
        make()
        Schedule.objects.update(timezone="Mars/Olympus")
        clock.set("10:01:01")
        assert schedule_ticks.sweep() is False
        assert ticks() == [("10:01", "refused", 1)]
        assert now_of().next_at is None
        assert schedule_ticks.check() == 0
        Schedule.objects.update(timezone="UTC")
        assert schedule_ticks.check() == 1
        assert now_of().next_at == clock.at("10:02:00")


class TestOutages:
    @pytest.mark.parametrize(
        ("catch_up", "made", "missed"),
        [
            ("latest", ["10:29:00Z", "10:30:00Z"], ("10:28", "missed", 28)),
            ("skip", ["10:30:00Z"], ("10:29", "missed", 29)),
            ("all", [f"10:{n:02}:00Z" for n in range(1, 31)], None),
        ],
    )
    def test_catching_up(self, clock: Clock, catch_up: str, made: list[str], missed: Any) -> None:
        """Half an hour without a scheduler: the stretch is one row, the tick of this minute is in time."""
        make(catch_up=catch_up)
        clock.set("10:30:20")
        schedule_ticks.sweep()
        assert jobs() == made
        assert [tick for tick in ticks() if tick[1] == "missed"] == ([missed] if missed else [])
        assert now_of().next_at == clock.at("10:31:00")
        assert schedule_ticks.sweep() is False
        assert jobs() == made

    def test_a_daily_tick_is_caught_up_hours_later(self, clock: Clock) -> None:
        make("0 11 * * *")
        clock.set("14:00:00")
        schedule_ticks.sweep()
        assert jobs() == ["11:00:00Z"]
        assert ScheduleTick.objects.get().detail == "Accepted 10800 s after its time."
        [job] = Job.objects.all()
        assert job.ready_at >= clock.at("14:00:00"), "its promise begins when it is there (DESIGN 5)"

    def test_a_job_that_would_be_born_stale_is_not_made(self, clock: Clock) -> None:
        make_type(KIND, max_age_seconds=3600)
        make("0 11 * * *", catch_up="all")
        clock.set("12:00:01")
        schedule_ticks.sweep()
        assert (jobs(), ticks()) == ([], [("11:00", "missed", 1)])

    def test_a_long_stretch_is_one_row_over_many_looks(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each look counts a bounded number; the newest become jobs in the last one."""
        looks: list[schedule_lines.Look] = []
        real = schedule_lines.look

        def look(*args: Any, **kwargs: Any) -> schedule_lines.Look:
            looks.append(real(*args, **kwargs, most=400))
            return looks[-1]

        monkeypatch.setattr(schedule_lines, "look", look)
        make(catch_up="latest")
        start = clock.at("10:30:00") - dt.timedelta(minutes=1_500)
        Schedule.objects.update(next_at=start)
        clock.set("10:30:20")
        assert schedule_ticks.sweep(limit=2) is True
        assert schedule_ticks.sweep() is False
        assert [one.missed for one in looks[:3]] == [300, 300, 300]
        assert jobs() == ["10:29:00Z", "10:30:00Z"]
        [row] = ScheduleTick.objects.filter(outcome="missed")
        assert (row.ticks, row.tick_at) == (1_499, clock.at("10:28:00"))

    def test_two_outages_are_two_rows(self, clock: Clock) -> None:
        make(catch_up="skip")
        for late, then in (("10:10:20", "10:11:01"), ("10:20:20", "10:21:01")):
            clock.set(late)
            schedule_ticks.sweep()
            clock.set(then)
            schedule_ticks.sweep()
        assert [tick for tick in ticks() if tick[1] == "missed"] == [("10:09", "missed", 9), ("10:19", "missed", 8)]

    def test_a_clock_that_was_ahead(self, clock: Clock) -> None:
        """When it is right again a schedule waits for its next tick, not for what the wrong clock said."""
        make("*/10 * * * *")
        clock.set("20:00:01")
        schedule_ticks.sweep()
        assert now_of().next_at == clock.at("20:10:00")
        clock.set("10:00:20")
        assert schedule_ticks.check() == 1
        assert now_of().next_at == clock.at("10:10:00")
        assert schedule_ticks.check() == 0

    def test_old_ticks_go(self, clock: Clock) -> None:
        make()
        for days in (29, 31):
            at = sql("SELECT jobs_now() - make_interval(days => %s)", days)[0][0]
            ScheduleTick.objects.create(schedule=NAME, tick_at=at, at=at, outcome="missed")
        housekeeping.forget_old()
        assert [(clock.at("10:00:00") - one.at).days for one in ScheduleTick.objects.all()] == [28]


class TestRefusals:
    @pytest.fixture
    def full(self, clock: Clock) -> Iterator[Callable[[bool], None]]:
        """Return a switch: the tier is over its backlog limit, or has room."""

        def switch(on: bool) -> None:
            Tier.objects.filter(number=2).update(backlog_limit=0 if on else 1_000_000)
            backlog.forget_cached()

        yield switch
        backlog.forget_cached()

    def test_a_full_tier_is_asked_again_for_a_minute(self, clock: Clock, full: Callable[[bool], None]) -> None:
        """Refused at first, shown at once, accepted as soon as there is room: one job, one row."""
        make("0 * * * *")
        clock.set("11:00:01")
        full(True)
        for _ in range(3):
            assert schedule_ticks.sweep() is False
        assert (ticks(), jobs()) == ([("11:00", "refused", 1)], [])
        assert "backlog limit" in ScheduleTick.objects.get().detail
        row = now_of()
        assert (row.refused, row.next_at) == (1, clock.at("11:00:00"))
        assert row.refused_since is not None
        clock.set("11:00:50")
        full(False)
        schedule_ticks.sweep()
        assert (ticks(), jobs()) == ([("11:00", "accepted", 1)], ["11:00:00Z"])
        row = now_of()
        assert (row.refused, row.refused_since, row.next_at) == (0, None, clock.at("12:00:00"))

    def test_after_a_minute_it_stays_refused(self, clock: Clock, full: Callable[[bool], None]) -> None:
        make("0 * * * *")
        full(True)
        for time in ("11:00:01", "11:00:40"):
            clock.set(time)
            schedule_ticks.sweep()
            assert now_of().next_at == clock.at("11:00:00")
        clock.set("11:01:40")
        schedule_ticks.sweep()
        assert (ticks(), now_of().next_at) == ([("11:00", "refused", 1)], clock.at("12:00:00"))
        full(False)
        schedule_ticks.sweep()
        assert jobs() == []
        clock.set("12:00:01")
        schedule_ticks.sweep()
        assert jobs() == ["12:00:00Z"]

    def test_what_is_caught_up_is_asked_again_as_well(self, clock: Clock, full: Callable[[bool], None]) -> None:
        """After an outage a tier is full; what was accepted before stays, none is lost on the way."""
        make("0 * * * *", catch_up="all")
        full(True)
        clock.set("14:30:00")
        schedule_ticks.sweep()
        assert ticks() == [("11:00", "refused", 1)]
        full(False)
        schedule_ticks.sweep()
        assert schedule_ticks.sweep() is False
        assert jobs() == [f"{hour}:00:00Z" for hour in (11, 12, 13, 14)]
        assert {tick[1] for tick in ticks()} == {"accepted"}

    def test_a_database_that_does_not_take_it_now(self, clock: Clock) -> None:
        """A lock that took too long is no last word."""
        make("0 * * * *")
        clock.set("11:00:01")

        def strike() -> None:
            faults.disarm()
            raise OperationalError("canceling statement due to lock timeout")

        faults.arm("schedules.accepted", strike)
        try:
            schedule_ticks.sweep()
        finally:
            faults.disarm()
        assert (ticks(), jobs()) == ([("11:00", "refused", 1)], [])
        schedule_ticks.sweep()
        assert (ticks(), jobs()) == ([("11:00", "accepted", 1)], ["11:00:00Z"])

    def test_what_is_final(self, clock: Clock) -> None:
        """A disabled type, a payload that its contract refuses: one refused row a tick, counted in a row."""
        make()
        set_switch(KIND, enabled=False, **WHO)
        contracts.forget()
        for minute in (1, 2):
            clock.set(f"10:0{minute}:01")
            schedule_ticks.sweep()
        JobType.objects.update(enabled=True, schema={"required": ["n"]})
        contracts.forget()
        clock.set("10:03:01")
        schedule_ticks.sweep()
        assert ticks() == [(f"10:0{n}", "refused", 1) for n in (1, 2, 3)]
        details = list(ScheduleTick.objects.order_by("tick_at").values_list("detail", flat=True))
        assert "disabled" in details[0]
        assert "breaks the contract" in details[2]
        assert (now_of().refused, now_of().next_at) == (3, clock.at("10:04:00"))
        JobType.objects.update(schema={})
        contracts.forget()
        clock.set("10:04:01")
        schedule_ticks.sweep()
        assert (now_of().refused, jobs()) == (0, ["10:04:00Z"])

    def test_a_key_that_somebody_else_holds(self, clock: Clock) -> None:
        make()
        tick = clock.at("10:01:00")
        enqueue(KIND, {}, dedupe_key=f"schedule:nightly:{schedule_lines.text_of(tick)}")
        clock.set("10:01:01")
        schedule_ticks.sweep()
        assert ticks() == [("10:01", "refused", 1)]
        assert "accepted before with another payload" in ScheduleTick.objects.get().detail
