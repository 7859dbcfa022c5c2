"""What people do with schedules: pauses, presses, settings, the command; and the service that they rely on."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command

from queues import contracts, schedule_ticks, schedules
from queues.contract_switches import SCHEDULER, set_switch
from queues.models import AuditEntry, Job, Schedule, ScheduleTick
from queues.scheduler import registered
from queues.schedules import NotPossible
from tests.factories import make_type
from tests.queues.ticking import KIND, NAME, WHO, Clock, Shift, jobs, make, now_of, ticks

pytestmark = pytest.mark.django_db


@pytest.fixture
def clock(shift_clock: Shift) -> Clock:
    return Clock(shift_clock)


class TestPauses:
    def test_ticks_pass_and_nothing_is_caught_up(self, clock: Clock) -> None:
        make(catch_up="all")
        schedules.pause(NAME, **WHO)
        clock.set("10:05:20")
        schedule_ticks.sweep()
        assert now_of().next_at == clock.at("10:06:00")
        clock.set("10:09:20")
        schedules.resume(NAME, **WHO)
        schedule_ticks.sweep()
        assert (ticks(), jobs()) == ([], [])
        clock.set("10:10:01")
        schedule_ticks.sweep()
        assert jobs() == ["10:10:00Z"]

    def test_a_pause_ends_by_itself_and_what_came_after_it_counts(self, clock: Clock) -> None:
        """No scheduler ran when it ended: ticks from then on are missed or caught up, those before are skipped."""
        make(catch_up="all")
        schedules.pause(NAME, until=clock.at("10:05:00"), **WHO)
        clock.set("10:07:20")
        assert schedule_ticks.sweep() is False
        assert jobs() == [], "the pause is over, and nobody has said so"
        assert schedules.end_pauses() == 1
        schedule_ticks.sweep()
        assert jobs() == ["10:05:00Z", "10:06:00Z", "10:07:00Z"]
        entry = AuditEntry.objects.get(action="schedule.resumed")
        assert (entry.actor, entry.object_id) == (SCHEDULER, NAME)
        assert schedules.end_pauses() == 0

    def test_what_nobody_saw_before_the_pause_is_missed(self, clock: Clock) -> None:
        make(catch_up="all")
        clock.set("10:03:20")
        schedules.pause(NAME, **WHO)
        assert ticks() == [("10:03", "missed", 3)]
        assert now_of().last_at == clock.at("10:03:00")
        clock.set("10:06:20")
        schedules.resume(NAME, **WHO)
        schedule_ticks.sweep()
        assert (jobs(), ticks()) == ([], [("10:03", "missed", 3)])

    def test_it_is_audited_and_safe_twice(self, clock: Clock) -> None:
        make()
        for _ in range(2):
            row = schedules.pause(NAME, until=clock.at("12:00:00"), **WHO)
        assert (row.paused, row.paused_by, row.paused_reason) == (True, "ann", "test")
        schedules.pause(NAME, actor="bob", reason="longer")
        for _ in range(2):
            row = schedules.resume(NAME, **WHO)
        assert (row.paused, row.paused_by, row.paused_reason, row.paused_until) == (False, "", "", None)
        entries = AuditEntry.objects.filter(action__in=["schedule.paused", "schedule.resumed"]).order_by("id")
        assert [(e.action, e.actor, e.reason) for e in entries] == [
            ("schedule.paused", "ann", "test"),
            ("schedule.paused", "bob", "longer"),
            ("schedule.resumed", "ann", "test"),
        ]

    @pytest.mark.parametrize(
        ("change", "code"),
        [({"name": "none"}, "unknown_schedule"), ({"name": "a\x00"}, "unknown_schedule"), ({"reason": " "}, "reason"),
         ({"until": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}, "until")],
    )  # fmt: skip
    def test_what_cannot_be(self, clock: Clock, change: dict[str, Any], code: str) -> None:
        make()
        with pytest.raises(NotPossible) as error:
            schedules.pause(**{"name": NAME, **WHO, **change})
        assert error.value.code == code
        assert not now_of().paused


class TestPresses:
    def test_a_press_makes_a_job_beside_the_line(self, clock: Clock) -> None:
        """Paused or not, with a key of its own; the schedule's own times stay."""
        make("0 11 * * *")
        schedules.pause(NAME, **WHO)
        pressed = schedules.run_now(NAME, after=0, **WHO)
        assert pressed.fresh
        [job] = Job.objects.all()
        assert job.id == pressed.job_id
        assert str(job.dedupe_key).startswith("schedule:nightly:press:")
        assert clock.at("10:00:20") <= dt.datetime.fromisoformat(json.loads(job.payload)["at"]) < clock.at("10:05:00")
        [tick] = ScheduleTick.objects.all()
        assert (tick.id, tick.by, tick.outcome, tick.job_id) == (pressed.tick_id, "ann", "accepted", job.id)
        entry = AuditEntry.objects.get(action="schedule.run")
        assert entry.after == {"tick": tick.id, "job": str(job.id), "detail": ""}
        assert entry.reason == "test"
        assert now_of().last_job_id is None

    def test_a_second_click_makes_no_second_job(self, clock: Clock) -> None:
        make()
        first = schedules.run_now(NAME, after=0, **WHO)
        again = schedules.run_now(NAME, after=0, **WHO)
        assert (again.fresh, again.tick_id, again.job_id) == (False, first.tick_id, first.job_id)
        assert schedules.run_now(NAME, after=0, actor="bob", reason="test").fresh, "somebody else asked as well"
        assert schedules.run_now(NAME, after=first.tick_id, **WHO).fresh, "a form that knew of the first"
        assert Job.objects.count() == 3
        assert AuditEntry.objects.filter(action="schedule.run").count() == 3

    def test_one_that_is_refused_says_why(self, clock: Clock) -> None:
        make()
        set_switch(KIND, enabled=False, **WHO)
        contracts.forget()
        pressed = schedules.run_now(NAME, after=0, **WHO)
        assert (pressed.job_id, pressed.fresh) == (None, True)
        assert "disabled" in pressed.detail
        assert schedules.run_now(NAME, after=0, **WHO).detail == pressed.detail
        assert now_of().refused == 0, "the line has nothing to do with it"

    def test_a_press_stands_in_the_way_of_no_tick(self, clock: Clock) -> None:
        make()
        clock.set("10:01:00")
        schedules.run_now(NAME, **WHO)
        schedule_ticks.sweep()
        assert Job.objects.count() == 2


class TestSettings:
    def test_another_line_counts_from_now(self, clock: Clock) -> None:
        """No job for times that only the new line names; what the old one named and nobody saw is missed."""
        make("0 * * * *", catch_up="all")
        clock.set("12:30:00")
        make("*/10 * * * *")
        assert now_of().next_at == clock.at("12:40:00")
        assert ticks() == [("12:00", "missed", 2)]
        schedule_ticks.sweep()
        assert jobs() == []
        make("*/10 * * * *", timezone="Asia/Kolkata")
        assert now_of().next_at == clock.at("12:40:00")
        entries = AuditEntry.objects.filter(object_type="schedule").order_by("id")
        assert [e.action for e in entries] == ["schedule.created", "schedule.changed", "schedule.changed"]
        assert (entries[1].before, entries[1].after) == ({"cron": "0 * * * *"}, {"cron": "*/10 * * * *"})

    def test_another_payload_leaves_its_times_alone(self, clock: Clock) -> None:
        make()
        clock.set("10:01:01")
        make(payload='{"password": "hunter2", "n": 1}', description="new")
        schedule_ticks.sweep()
        assert jobs() == ["10:01:00Z"]
        assert json.loads(Job.objects.get().payload)["n"] == 1
        entry = AuditEntry.objects.get(action="schedule.changed")
        assert "hunter2" not in str((entry.before, entry.after))
        assert entry.after == {"payload": {"password": "[redacted]", "n": 1}, "description": "new"}
        make(payload='{"password": "hunter2", "n": 1}', description="new")
        assert AuditEntry.objects.filter(action="schedule.changed").count() == 1, "nothing changed"

    @pytest.mark.parametrize(
        ("field", "value"),
        [("name", "Not A Name"), ("job_type", "none.such"), ("cron", "* * * * * *"), ("timezone", "Mars"),
         ("payload", "{tick}"), ("payload", '{"n": 1, "n": 2}'), ("payload", '"' + "x" * 300_000 + '"'),
         ("group", "two words"), ("priority", 101), ("catch_up", "sometimes"), ("description", "x" * 501)],
    )  # fmt: skip
    def test_what_is_refused(self, clock: Clock, field: str, value: Any) -> None:
        with pytest.raises(ValidationError) as error:
            make(**{field: value})
        assert list(error.value.message_dict) == [field]
        assert not Schedule.objects.exists()

    def test_a_payload_is_held_against_the_contract(self, clock: Clock) -> None:
        make_type(KIND, schema={"properties": {"day": {"type": "string", "maxLength": 10}}, "required": ["day"]})
        make()
        with pytest.raises(ValidationError, match="breaks the contract"):
            make(payload='{"day": "on {date}"}')

    def test_a_deleted_one_ticks_no_more(self, clock: Clock) -> None:
        make()
        schedules.delete(NAME, **WHO)
        clock.set("10:05:20")
        schedule_ticks.sweep()
        assert (jobs(), Schedule.objects.count()) == ([], 0)
        assert '"cron": "* * * * *"' in json.dumps(AuditEntry.objects.get(action="schedule.deleted").before)


class TestCommandAndService:
    def test_the_service(self, clock: Clock) -> None:
        """`manage.py scheduler` has it; a round ends pauses, sets clocks right and sweeps."""
        [service] = [one for one in registered() if one.name == "schedules"]
        assert service.every_seconds == 1.0
        make()
        schedules.pause(NAME, until=clock.at("10:01:00"), **WHO)
        Schedule.objects.update(next_at=clock.at("20:00:00"))
        clock.set("10:01:01")
        assert service.run_once() is False
        assert jobs() == ["10:01:00Z"]

    def test_the_command(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        def said(*arguments: str) -> str:
            call_command("schedule", *arguments)
            return capsys.readouterr().out

        make("30 11 * * *", timezone="Europe/Berlin")
        assert f"{NAME}: 30 11 * * * Europe/Berlin enqueues {KIND}; next " in said("list")
        assert "At 11:30" in said("check", "30 11 * * *", "--timezone", "Europe/Berlin", "--count", "2")
        assert "enqueued" in said("run", NAME, "--reason", "test", "--actor", "ann")
        assert "run by ann" in said("show", NAME)
        assert "paused by ann until" in said("pause", NAME, "--reason", "test", "--actor", "ann", "--minutes", "30")
        assert "next " in said("resume", NAME, "--reason", "test")
        assert AuditEntry.objects.filter(source="command", actor="ann").count() == 2
        for wrong in (("show", "none"), ("check", "x"), ("run", "none", "--reason", "x"),
                      ("pause", NAME, "--reason", "x", "--minutes", "nan")):  # fmt: skip
            with pytest.raises(CommandError):
                call_command("schedule", *wrong)
