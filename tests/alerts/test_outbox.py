"""Who is told what, and that a button pressed twice is pressed once."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from jobsboard.alerts import outbox
from jobsboard.models import Alert, Event, WebhookDelivery, WebhookEndpoint
from queues.models import AuditEntry
from tests.alerts.endpoints import T0, make_alert, make_endpoint, make_finding, moved_on, told
from tests.alerts.rounds import make_rule

pytestmark = pytest.mark.django_db


def bodies(endpoint: WebhookEndpoint) -> list[dict[str, Any]]:
    """Return the messages to an endpoint, in order."""
    rows = WebhookDelivery.objects.filter(endpoint=endpoint).order_by("sequence", "created_at")
    return [json.loads(row.body) for row in rows]


def announce(alert: Alert, event: Event, **changes: Any) -> int:
    """Move an alert on and tell of it."""
    return outbox.announce(moved_on(alert, event, **changes), event, now=T0)


def test_enabled_endpoints_that_want_the_event_are_told() -> None:
    """And no other one: not the disabled, not the one with other events, not a dead man's switch."""
    every, only_end = make_endpoint(), make_endpoint("end", events=["alert.resolved"])
    off, switch = make_endpoint("off", enabled=False), make_endpoint("switch", format="heartbeat")
    alert = make_alert(sequence=0)
    assert announce(alert, Event.FIRING) == 1
    assert announce(alert, Event.ACKNOWLEDGED) == 1
    assert announce(alert, Event.RESOLVED) == 2
    assert told(every) == ["firing", "acknowledged", "resolved"]
    assert told(only_end) == ["resolved"]
    assert told(off) == told(switch) == []
    assert [body["data"]["sequence"] for body in bodies(every)] == [1, 2, 3]


def test_a_severity_that_rises_is_the_first_message_to_who_wants_critical_ones() -> None:
    """What it was before lay below its severity, so to it the alert begins now."""
    critical = make_endpoint("critical", least_severity="critical", events=["alert.firing", "alert.resolved"])
    both = make_endpoint("both")
    alert = make_alert(sequence=0)
    announce(alert, Event.FIRING)
    assert told(critical) == []
    announce(alert, Event.UPDATED, severity="critical")
    assert told(critical) == ["firing"]
    assert told(both) == ["firing", "updated"]
    assert [body["type"] for body in bodies(critical)] == ["alert.firing"]


def test_who_was_told_that_it_fires_hears_the_end_whatever_the_severity_is_then() -> None:
    """An incident that somebody opened is closed again."""
    critical = make_endpoint(least_severity="critical")
    alert = make_alert(sequence=0, severity="critical")
    announce(alert, Event.FIRING)
    announce(alert, Event.RESOLVED, severity="warning")
    assert told(critical) == ["firing", "resolved"]
    # A test is no such message, and neither is one of another alert.
    other = make_alert("tier3", sequence=0)
    outbox.send_test(critical.pk, actor="ada")
    announce(other, Event.RESOLVED)
    assert told(critical) == ["test", "firing", "resolved"]


def test_what_is_told_is_gone_with_the_transaction_that_told_it() -> None:
    """Nobody is told of what was not kept."""
    make_endpoint()
    alert = make_alert()
    with pytest.raises(RuntimeError), transaction.atomic():
        outbox.announce(alert, Event.FIRING, now=T0)
        raise RuntimeError
    assert not WebhookDelivery.objects.exists()


def test_each_format_has_its_own_text_and_secrets_are_taken_out() -> None:
    """One alert, three endpoints, three texts; S-27: a secret in the words of an alert leaves with none of them."""
    endpoints = [make_endpoint(kind, format=kind) for kind in ("standard", "slack", "alertmanager")]
    words = "dead: Unauthorized, password=hunter2hunter2"
    alert = make_alert(title=words, findings=[make_finding(words=words)])
    assert outbox.announce(alert, Event.FIRING, now=T0) == 3
    texts = [WebhookDelivery.objects.get(endpoint=endpoint).body for endpoint in endpoints]
    assert [next(iter(json.loads(text))) for text in texts] == ["type", "text", "version"]
    assert not any("hunter2" in text for text in texts)
    assert all("Unauthorized" in text for text in texts)


def test_a_test_is_audited_and_pressed_twice_is_once(shift_clock: Any) -> None:
    """The second press within ten seconds is answered with the first one's delivery; another person's is not."""
    endpoint = make_endpoint()
    first, new = outbox.send_test(endpoint.pk, actor="ada", request_id="r-1")
    again, newer = outbox.send_test(endpoint.pk, actor="ada")
    assert (new, newer, again.pk) == (True, False, first.pk)
    other, _ = outbox.send_test(endpoint.pk, actor="bob")
    assert other.pk != first.pk
    shift_clock("11 seconds")
    assert outbox.send_test(endpoint.pk, actor="ada")[1]
    entries = AuditEntry.objects.filter(action="webhook.test_sent").order_by("id")
    assert [(one.actor, one.object_id, one.request_id) for one in entries] == [
        ("ada", str(endpoint.pk), "r-1"), ("bob", str(endpoint.pk), ""), ("ada", str(endpoint.pk), ""),
    ]  # fmt: skip
    assert json.loads(first.body)["data"]["test"] is True


def test_a_rule_is_test_fired_at_every_enabled_endpoint_once() -> None:
    """Whatever their severities and events: a test shows that they can be reached."""
    rule = make_rule(severity="critical", runbook_url="https://wiki.example/x")
    with pytest.raises(outbox.NotSent):
        outbox.test_fire(rule.pk, actor="ada")
    one = make_endpoint("one", format="slack", least_severity="critical", events=[])
    two = make_endpoint("two")
    make_endpoint("off", enabled=False)
    make_endpoint("switch", format="heartbeat")
    made, new = outbox.test_fire(rule.pk, actor="ada")
    again, newer = outbox.test_fire(rule.pk, actor="ada")
    assert (new, newer) == (True, False)
    assert {row.pk for row in made} == {row.pk for row in again}
    assert told(one) == told(two) == ["test"]
    data = bodies(two)[0]["data"]
    assert (data["severity"], data["test"], data["id"]) == ("critical", True, None)
    assert rule.name in data["title"] and data["findings"][0]["runbook_url"] == "https://wiki.example/x"
    other = make_rule()
    assert outbox.test_fire(other.pk, actor="ada")[1]
    assert AuditEntry.objects.filter(action="alert_rule.test_fired").count() == 2


def test_a_resend_has_the_text_of_the_first_and_an_id_of_its_own() -> None:
    """Of an alert that moved on as well; audited; pressed twice it is sent once."""
    endpoint, alert = make_endpoint(), make_alert(sequence=0)
    announce(alert, Event.FIRING)
    first = WebhookDelivery.objects.get()
    announce(alert, Event.RESOLVED)
    second, new = outbox.resend(first.pk, actor="ada", reason="the pager was off")
    again, newer = outbox.resend(first.pk, actor="ada")
    assert (new, newer, again.pk) == (True, False, second.pk)
    assert second.pk != first.pk
    assert (second.body, second.event, second.sequence, second.alert_id) == (
        first.body, first.event, first.sequence, first.alert_id,
    )  # fmt: skip
    entry = AuditEntry.objects.get(action="webhook.resent")
    assert (entry.actor, entry.object_id, entry.reason) == ("ada", str(endpoint.pk), "the pager was off")
    assert entry.after == {"name": "ops", "delivery": second.pk, "of": first.pk}


def test_nothing_is_sent_by_hand_to_an_endpoint_that_takes_nothing() -> None:
    """Disabled, or a dead man's switch: said, and nothing made."""
    off, switch = make_endpoint("off"), make_endpoint("switch", format="heartbeat")
    delivery, _ = outbox.send_test(off.pk, actor="ada")
    WebhookEndpoint.objects.filter(pk=off.pk).update(enabled=False)
    for refused in (off, switch):
        with pytest.raises(outbox.NotSent):
            outbox.send_test(refused.pk, actor="bob")
    with pytest.raises(outbox.NotSent):
        outbox.resend(delivery.pk, actor="bob")
    assert WebhookDelivery.objects.count() == 1


def test_the_database_refuses_a_pending_delivery_without_a_time() -> None:
    """A delivery that would never be tried again cannot be stored as pending (promise 5)."""
    endpoint = make_endpoint()
    with pytest.raises(IntegrityError), transaction.atomic():
        WebhookDelivery.objects.create(id="msg_1", endpoint=endpoint, event="alert.test", body="{}", due_at=None)
    with pytest.raises(IntegrityError), transaction.atomic():
        WebhookDelivery.objects.create(
            id="msg_2", endpoint=endpoint, event="alert.test", body="{}", state="failed", due_at=None,
            created_at=T0 - dt.timedelta(days=1),
        )  # fmt: skip
