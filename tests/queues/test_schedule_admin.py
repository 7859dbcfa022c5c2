"""Schedules in the admin: who may do what, what the form refuses and says, what is audited."""

from __future__ import annotations

from typing import Any, Final

import pytest
from django.urls import reverse

from queues import contracts, schedules
from queues.models import AuditEntry, Schedule
from tests.factories import make_type
from tests.queues.test_admin import client_of, errors_of, form_data, messages_of

pytestmark = pytest.mark.django_db
KIND: Final = "report.make"
LIST: Final = "admin:queues_schedule_changelist"
ADD: Final = "admin:queues_schedule_add"


@pytest.fixture
def nightly() -> Schedule:
    """A schedule with something in its payload that not everybody may see."""
    make_type(KIND, redact=["/iban"])
    fields = {"job_type": KIND, "cron": "30 3 * * MON-FRI", "payload": '{"iban": "DE89", "customer": "c-17"}'}
    return schedules.save("nightly", fields, actor="deploy", reason="first")


def url_of(verb: str = "change") -> str:
    return reverse(f"admin:queues_schedule_{verb}", args=["nightly"])


@pytest.mark.parametrize(
    ("role", "seen", "add", "posted", "payload"),
    [("viewer", 200, 403, 403, "neither"), ("operator", 200, 403, 403, "redacted"), ("owner", 200, 200, 302, "all"),
     ("admin", 200, 200, 302, "all"), ("other", 403, 403, 403, "")],
)  # fmt: skip
def test_roles(nightly: Schedule, role: str, seen: int, add: int, posted: int, payload: str) -> None:
    """All roles look, owners and admins edit; a payload is seen as its viewer may see payloads."""
    client = client_of(role)
    assert client.get(reverse(LIST)).status_code == seen
    assert client.get(reverse(ADD)).status_code == add
    page = client.get(url_of())
    assert page.status_code == seen
    if seen == 200:
        text = page.content.decode()
        assert ("DE89" in text) == (payload == "all")
        assert ("c-17" in text) == (payload in ("all", "redacted"))
        assert "At 03:30 on Monday through Friday" in text
    data = form_data(client, url_of(), cron="0 4 * * *") if posted == 302 else {}
    assert client.post(url_of(), data).status_code == posted
    assert Schedule.objects.get().cron == ("0 4 * * *" if posted == 302 else "30 3 * * MON-FRI")


def test_a_schedule_is_made_and_changed_with_a_reason() -> None:
    """Its next tick is said; before and after are in the audit log, with who and why."""
    make_type(KIND)
    owner = client_of("owner")
    form = {"name": "hourly", "job_type": KIND, "cron": " 0  * * * * ", "timezone": "Europe/Berlin", "payload": "{}",
            "catch_up": "skip", "reason": "a new report"}  # fmt: skip
    answer = owner.post(reverse(ADD), form, follow=True)
    assert any(text.startswith("Its next tick is ") for text in messages_of(answer))
    row = Schedule.objects.get()
    assert (row.cron, row.catch_up, row.group, row.priority) == ("0 * * * *", "skip", "", None)
    assert row.next_at is not None
    change = reverse("admin:queues_schedule_change", args=["hourly"])
    owner.post(change, form_data(owner, change, priority="5", name=None), follow=True)
    made, changed = AuditEntry.objects.filter(object_type="schedule").order_by("id")
    assert (made.action, made.actor, made.reason, made.source) == (
        "schedule.created", "owner", "a new report", "admin",
    )  # fmt: skip
    assert (changed.action, changed.before, changed.after) == ("schedule.changed", {"priority": None}, {"priority": 5})
    assert Schedule.objects.get().next_at == row.next_at


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cron": "* * * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": ""}, "cron"),
        ({"timezone": "Mars"}, "timezone"),
        ({"payload": "{"}, "payload"),
        ({"payload": '{"n": "one"}'}, "payload"),
        ({"group": "two words"}, "group"),
        ({"priority": "101"}, "priority"),
        ({"catch_up": "sometimes"}, "catch_up"),
        ({"job_type": "none"}, "job_type"),
        ({"reason": ""}, "reason"),
    ],
)
def test_what_the_form_refuses(nightly: Schedule, change: dict[str, Any], field: str) -> None:
    """At the field, with nothing saved."""
    nightly.job_type.schema = {"properties": {"n": {"type": "integer"}}}
    nightly.job_type.save()
    contracts.forget()
    owner = client_of("owner")
    answer = owner.post(url_of(), form_data(owner, url_of(), **change))
    assert answer.status_code == 200
    assert list(errors_of(answer)) == [field]
    row = Schedule.objects.get()
    assert (row.cron, row.timezone, row.payload) == (nightly.cron, nightly.timezone, nightly.payload)
    assert not AuditEntry.objects.filter(action="schedule.changed").exists()


def test_a_schedule_is_deleted_and_that_is_audited(nightly: Schedule) -> None:
    """Its job type cannot go before it."""
    owner = client_of("owner")
    owner.post(reverse("admin:queues_jobtype_delete", args=[KIND]), {"post": "yes"})
    assert Schedule.objects.exists()
    assert owner.post(url_of("delete"), {"post": "yes"}).status_code == 302
    assert not Schedule.objects.exists()
    assert AuditEntry.objects.get(action="schedule.deleted").actor == "owner"
