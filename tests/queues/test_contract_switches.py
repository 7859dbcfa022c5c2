"""Switches: why, who and until when; the scheduler turns them back; each change is audited."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from queues.contract_switches import SwitchRefused, database_now, set_switch, turn_back
from queues.models import AuditEntry, BoardVersion, JobType
from queues.scheduler import switches
from tests.factories import make_type

pytestmark = pytest.mark.django_db

NAME = "billing.receipt"
Shift = Callable[[str], None]


@pytest.fixture(autouse=True)
def kind(db: None) -> JobType:
    return make_type(NAME)


def set_(**given: Any) -> JobType:
    return set_switch(NAME, **{"actor": "bob", "reason": "provider is down", **given})


def row() -> JobType:
    return JobType.objects.get(pk=NAME)


def marks() -> tuple[Any, ...]:
    one = row()
    return one.paused, one.paused_reason, one.paused_by, one.paused_until


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


def test_a_pause_says_why_who_and_until_when() -> None:
    until = database_now() + timedelta(hours=2)
    before = BoardVersion.objects.get().n
    assert set_(paused=True, until=until, source="ui").paused
    assert marks() == (True, "provider is down", "bob", until)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason, entry.source) == (
        "contract.paused",
        "bob",
        "provider is down",
        "ui",
    )
    assert entry.before == {"paused": False, "paused_until": None}
    assert entry.after == {"paused": True, "paused_until": until.isoformat()}
    assert BoardVersion.objects.get().n > before
    set_(paused=False, reason="it is back", actor="cleo")
    assert marks() == (False, "", "", None)
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.actor, entry.reason) == ("contract.resumed", "cleo", "it is back")


def test_switches_are_audited_one_by_one() -> None:
    set_(paused=True)
    one = set_(paused=True, enabled=False, reason="stop", actor="cleo")
    assert (one.enabled, one.disabled_reason, one.disabled_by) == (False, "stop", "cleo")
    assert (one.paused_reason, one.paused_by) == ("stop", "cleo")
    one = set_(paused=False, enabled=True, reason="go")
    assert (one.paused, one.paused_reason, one.enabled, one.disabled_reason, one.disabled_by) == (
        False, "", True, "", "",
    )  # fmt: skip
    assert one.version == 1
    assert actions() == ["contract.paused", "contract.disabled", "contract.paused", "contract.enabled",
                         "contract.resumed"]  # fmt: skip
    first = AuditEntry.objects.order_by("id")[0]
    assert (first.before, first.after) == ({"paused": False}, {"paused": True})


@pytest.mark.parametrize("given", [{"paused": True}, {"enabled": False}])
def test_the_same_again_changes_nothing(given: dict[str, Any]) -> None:
    until = database_now() + timedelta(hours=2)
    set_(**given, until=until)
    before = BoardVersion.objects.get().n
    set_(**given, until=until, actor="cleo")
    assert len(actions()) == 1
    assert BoardVersion.objects.get().n == before
    assert "bob" in (row().paused_by, row().disabled_by)


def test_what_is_on_already_is_not_turned_on() -> None:
    set_(paused=False, enabled=True)
    assert actions() == []


def test_a_pause_gets_another_end_and_its_new_person() -> None:
    first, second = (database_now() + timedelta(hours=n) for n in (1, 2))
    set_(paused=True, until=first)
    set_(paused=True, until=second, actor="cleo", reason="still down")
    assert marks() == (True, "still down", "cleo", second)
    set_(paused=True, actor="cleo", reason="still down")
    assert marks() == (True, "still down", "cleo", None)
    entry = AuditEntry.objects.latest("id")
    assert entry.before == {"paused": True, "paused_until": second.isoformat()}
    assert entry.after == {"paused": True, "paused_until": None}


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (timedelta(0), "in the future"),
        (timedelta(days=-1), "in the future"),
        (timedelta(days=366, minutes=1), "366 days"),
    ],
)
def test_an_end_lies_ahead_and_within_a_year(ahead: timedelta, words: str) -> None:
    with pytest.raises(SwitchRefused, match=words):
        set_(paused=True, until=database_now() + ahead)
    assert marks() == (False, "", "", None)
    assert actions() == []
    set_(paused=True, until=database_now() + timedelta(days=366) - timedelta(seconds=9))
    assert row().paused


def test_the_database_says_what_the_future_is(shift_clock: Shift) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    shift_clock("2 hours")
    with pytest.raises(SwitchRefused, match="in the future"):
        set_(paused=True, until=until)


def test_an_end_needs_a_zone_and_something_that_ends() -> None:
    with pytest.raises(SwitchRefused, match="time zone"):
        set_(paused=True, until=datetime(2100, 1, 1))  # noqa: DTZ001
    for given in ({"paused": False}, {"enabled": True}, {}):
        with pytest.raises(SwitchRefused, match="paused, deferred or disabled"):
            set_(**given, until=database_now() + timedelta(hours=1))


def test_a_type_that_is_not_there() -> None:
    with pytest.raises(JobType.DoesNotExist):
        set_switch("gone", paused=True, reason="x", actor="bob")


def test_the_scheduler_turns_back_what_has_reached_its_end(shift_clock: Shift) -> None:
    now = database_now()
    set_(paused=True, until=now + timedelta(hours=1))
    set_(enabled=False, until=now + timedelta(hours=3), reason="stop")
    make_type("for.ever")
    set_switch("for.ever", paused=True, reason="no end", actor="bob")
    assert switches.run_once() is False
    assert row().paused
    shift_clock("2 hours")
    before = BoardVersion.objects.get().n
    assert switches.run_once() is False
    one = row()
    assert (one.paused, one.paused_reason, one.paused_by, one.paused_until) == (False, "", "", None)
    assert (one.enabled, one.disabled_reason, one.disabled_by) == (False, "stop", "bob")
    assert BoardVersion.objects.get().n > before
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.actor, entry.source) == ("contract.resumed", "scheduler", "command")
    assert "provider is down" in entry.reason
    assert entry.before == {"paused": True, "paused_until": (now + timedelta(hours=1)).isoformat()}
    assert entry.after == {"paused": False, "paused_until": None}
    shift_clock("4 hours")
    switches.run_once()
    one = row()
    assert (one.enabled, one.disabled_reason, one.disabled_until) == (True, "", None)
    assert AuditEntry.objects.latest("id").action == "contract.enabled"
    assert JobType.objects.get(pk="for.ever").paused
    count = len(actions())
    switches.run_once()
    assert len(actions()) == count


def test_both_switches_of_a_type_end_at_once(shift_clock: Shift) -> None:
    set_(paused=True, enabled=False, until=database_now() + timedelta(minutes=1))
    shift_clock("1 hour")
    assert turn_back(limit=10) == 1
    assert actions()[-2:] == ["contract.enabled", "contract.resumed"]
    assert (row().paused, row().enabled) == (False, True)


def test_a_full_batch_says_that_there_may_be_more(shift_clock: Shift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "BATCH", 2)
    for name in ("a", "b", "c"):
        make_type(name)
        set_switch(name, paused=True, reason="x", actor="bob", until=database_now() + timedelta(minutes=1))
    shift_clock("1 hour")
    assert switches.run_once() is True
    assert switches.run_once() is False
    assert not JobType.objects.filter(paused=True).exists()


def test_a_new_end_set_meanwhile_is_not_cut_short(shift_clock: Shift) -> None:
    set_(paused=True, until=database_now() + timedelta(minutes=1))
    set_(paused=True, until=database_now() + timedelta(hours=3))
    shift_clock("1 hour")
    assert turn_back(limit=10) == 0
    assert row().paused
