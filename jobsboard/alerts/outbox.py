"""Who is told what: every delivery is made here, with its finished text, in the transaction of what it tells of.

Not here: the texts (`formats`), sending them (`delivery`), what an alert is (`engine`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from jobsboard.alerts import formats
from jobsboard.alerts.formats import Finding, Snapshot
from jobsboard.models import TEST, Alert, AlertRule, Event, Severity, WebhookDelivery, WebhookEndpoint
from queues import audit
from queues.models import AuditEntry, BoardVersion
from queues.redaction import redact_text

ONCE_SECONDS: Final = 10
"""The same, pressed again by the same person within this time, is answered with what the first press made."""
_RANK: Final = {Severity.WARNING.value: 1, Severity.CRITICAL.value: 2}
_HEARTBEAT: Final = WebhookEndpoint.Format.HEARTBEAT.value


class NotSent(ValueError):
    """It cannot be sent; the text says why. Nothing was changed."""


def announce(alert: Alert, event: Event, *, now: datetime) -> int:
    """Make one delivery for each endpoint that wants to know; return how many. In the caller's transaction.

    An endpoint whose first message of an alert would be that it got worse is told that it fires: what was before lay
    below its severity. Whoever was told of an alert also hears the rest of it, whatever the severity is then.
    """
    told = set(
        WebhookDelivery.objects.filter(alert=alert, created_by="").values_list("endpoint_id", flat=True).distinct()
    )
    made = []
    for endpoint in _listening():
        if endpoint.pk not in told and _RANK[alert.severity] < _RANK[endpoint.least_severity]:
            continue
        if event is Event.RESOLVED and endpoint.pk not in told and Event.FIRING.value in endpoint.events:
            # It came while the alert was open, and never heard of it.
            continue
        said = Event.FIRING if event is Event.UPDATED and endpoint.pk not in told else event
        if said.value not in endpoint.events:
            continue
        snapshot = _snapshot(alert, said.value, at=now)
        made.append(_delivery(endpoint, snapshot, alert=alert, now=now))
    WebhookDelivery.objects.bulk_create(made)
    return len(made)


def catch_up(alerts: Sequence[Alert], *, now: datetime) -> int:
    """Tell endpoints that came, or came back, while alerts fire; return how many. In the caller's transaction.

    Two statements, none without an alert.
    """
    if not alerts:
        return 0
    told = set(WebhookDelivery.objects.filter(alert__in=alerts, created_by="").values_list("alert_id", "endpoint_id"))
    made = [
        _delivery(endpoint, _snapshot(alert, Event.FIRING.value, at=now), alert=alert, now=now)
        for endpoint in _listening()
        for alert in alerts
        if (alert.pk, endpoint.pk) not in told
        and Event.FIRING.value in endpoint.events
        and _RANK[alert.severity] >= _RANK[endpoint.least_severity]
    ]
    WebhookDelivery.objects.bulk_create(made)
    return len(made)


def send_test(
    endpoint_id: int, *, actor: str, source: str = "ui", request_id: str = ""
) -> tuple[WebhookDelivery, bool]:
    """Send an endpoint an alert that is none; return the delivery and whether it is new.

    Raises: WebhookEndpoint.DoesNotExist, NotSent.
    """
    with transaction.atomic():
        endpoint = _locked(endpoint_id)
        now = _now()
        known = _pressed(WebhookDelivery.objects.filter(endpoint=endpoint, event=TEST), actor=actor, now=now).first()
        if known is not None:
            return known, False
        delivery = _delivery(endpoint, _sample(now), alert=None, now=now, actor=actor)
        delivery.save(force_insert=True)
        _record("webhook.test_sent", "webhook", endpoint.pk, actor, source, request_id,
                {"name": endpoint.name, "delivery": delivery.pk})  # fmt: skip
    return delivery, True


def test_fire(
    rule_id: int, *, actor: str, source: str = "ui", request_id: str = ""
) -> tuple[Sequence[WebhookDelivery], bool]:
    """Send every enabled endpoint what a rule would say, marked as a test; return the deliveries and if they are new.

    Raises: AlertRule.DoesNotExist, NotSent when there is no endpoint to send it to.
    """
    with transaction.atomic():
        # Locked, so that the second of two clicks sees what the first one made.
        rule = AlertRule.objects.select_for_update(no_key=True).get(pk=rule_id)
        now = _now()
        known = _fired(rule, actor=actor, now=now)
        if known:
            return known, False
        endpoints = _listening()
        if not endpoints:
            raise NotSent("There is no enabled endpoint to send it to.")
        sample = _of_rule(rule, at=now)
        made = [_delivery(endpoint, sample, alert=None, now=now, actor=actor) for endpoint in endpoints]
        WebhookDelivery.objects.bulk_create(made)
        _record("alert_rule.test_fired", "alert_rule", rule.pk, actor, source, request_id,
                {"rule": rule.name, "deliveries": [one.pk for one in made]})  # fmt: skip
    return made, True


def resend(
    delivery_id: str, *, actor: str, reason: str = "", source: str = "ui", request_id: str = ""
) -> tuple[WebhookDelivery, bool]:
    """Send the text of a delivery again, under a new id; return the new delivery and whether it is new.

    Of an alert that moved on it is allowed all the same: the sequence in the text tells the receiver.
    Raises: WebhookDelivery.DoesNotExist, NotSent.
    """
    with transaction.atomic():
        first = WebhookDelivery.objects.get(pk=delivery_id)
        endpoint = _locked(first.endpoint_id)
        now = _now()
        same = WebhookDelivery.objects.filter(
            endpoint=endpoint, alert=first.alert_id, event=first.event, sequence=first.sequence
        )
        known = _pressed(same.exclude(pk=first.pk), actor=actor, now=now).filter(body=first.body).first()
        if known is not None:
            return known, False
        made = WebhookDelivery(
            id=_new_id(), endpoint=endpoint, alert_id=first.alert_id, event=first.event, sequence=first.sequence,
            body=first.body, due_at=now, created_at=now, created_by=actor[:150],
        )  # fmt: skip
        made.save(force_insert=True)
        _record("webhook.resent", "webhook", endpoint.pk, actor, source, request_id,
                {"name": endpoint.name, "delivery": made.pk, "of": first.pk}, reason=reason)  # fmt: skip
    return made, True


def _listening() -> list[WebhookEndpoint]:
    """Return the enabled endpoints that take messages."""
    wanted = WebhookEndpoint.objects.filter(enabled=True).exclude(format=_HEARTBEAT).order_by("id")
    return list(wanted.only("id", "name", "format", "events", "least_severity"))


def _locked(endpoint_id: int) -> WebhookEndpoint:
    """Lock an endpoint that can be sent something, so that of two clicks the second sees what the first made."""
    # No key update: rows that refer to it may be inserted meanwhile.
    endpoint = WebhookEndpoint.objects.select_for_update(no_key=True).get(pk=endpoint_id)
    if endpoint.format == _HEARTBEAT:
        raise NotSent("A dead man's switch is told at its interval and takes no other messages.")
    if not endpoint.enabled:
        raise NotSent("The endpoint is disabled. Enable it first.")
    return endpoint


def _pressed(deliveries: Any, *, actor: str, now: datetime) -> Any:
    return deliveries.filter(created_by=actor[:150], created_at__gt=now - timedelta(seconds=ONCE_SECONDS))


def _fired(rule: AlertRule, *, actor: str, now: datetime) -> list[WebhookDelivery]:
    """Return what the same person's last press made, as the audit log has it."""
    entry = AuditEntry.objects.filter(
        action="alert_rule.test_fired", object_type="alert_rule", object_id=str(rule.pk), actor=actor[:150],
        at__gt=now - timedelta(seconds=ONCE_SECONDS),
    ).first()  # fmt: skip
    return list(WebhookDelivery.objects.filter(pk__in=(entry.after or {})["deliveries"])) if entry else []


def _new_id() -> str:
    return f"msg_{secrets.token_hex(16)}"


def _delivery(
    endpoint: WebhookEndpoint, snapshot: Snapshot, *, alert: Alert | None, now: datetime, actor: str = ""
) -> WebhookDelivery:
    return WebhookDelivery(
        id=_new_id(), endpoint=endpoint, alert=alert, event=snapshot.event, sequence=snapshot.sequence,
        body=formats.render(endpoint.format, snapshot, receiver=endpoint.name), due_at=now, created_at=now,
        created_by=actor[:150],
    )  # fmt: skip


def _snapshot(alert: Alert, event: str, *, at: datetime) -> Snapshot:
    return Snapshot(
        event=event, at=at, id=alert.pk, key=alert.key, sequence=alert.sequence, state=alert.state,
        severity=alert.severity, title=redact_text(alert.title), tier=alert.tier, job_type=alert.job_type,
        started_at=alert.started_at, acknowledged_at=alert.acknowledged_at, acknowledged_by=alert.acknowledged_by,
        resolved_at=alert.resolved_at, findings=[_finding(one) for one in alert.findings],
        url=f"{settings.PUBLIC_URL}/alerts/{alert.pk}/", public_url=settings.PUBLIC_URL,
    )  # fmt: skip


def _finding(one: Mapping[str, Any]) -> Finding:
    return Finding(
        rule=str(one.get("rule_name") or one.get("rule") or ""), subject=str(one.get("subject", "")),
        severity=str(one.get("severity", "")), words=redact_text(str(one.get("words", ""))), value=one.get("value"),
        since=_moment(one.get("since")), cleared_at=_moment(one.get("cleared_at")),
        runbook_url=str(one.get("runbook_url", "")), tier=one.get("tier"), job_type=str(one.get("job_type", "")),
    )  # fmt: skip


def _moment(value: Any) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) and value else None


def _sample(at: datetime) -> Snapshot:
    """Return an alert that says of itself that nothing is wrong."""
    words = "This is a test. Nothing is wrong."
    return Snapshot(
        event=TEST, at=at, id=None, key="test", sequence=0, state="firing", severity=Severity.WARNING.value,
        title="Test from Jobsboard", tier=None, job_type="", started_at=at, acknowledged_at=None, acknowledged_by="",
        resolved_at=None, test=True, url=f"{settings.PUBLIC_URL}/webhooks/", public_url=settings.PUBLIC_URL,
        findings=[
            Finding(
                rule="Test", subject="test", severity=Severity.WARNING.value, words=words, value=None, since=at,
                cleared_at=None, runbook_url="",
            )
        ],
    )  # fmt: skip


def _of_rule(rule: AlertRule, *, at: datetime) -> Snapshot:
    """Return the alert that a rule would open, marked as a test."""
    subject = rule.job_type or (f"tier {rule.tier}" if rule.tier else "all")
    comparison = rule.get_comparison_display()
    words = (
        f"Test of the rule {rule.name}: nothing is wrong. It fires when its value is {comparison} {rule.threshold:g}."
    )
    sample = _sample(at)
    finding = replace(
        sample.findings[0], rule=rule.name, subject=subject, severity=rule.severity, words=words,
        value=rule.threshold, runbook_url=rule.runbook_url, tier=rule.tier, job_type=rule.job_type,
    )  # fmt: skip
    return replace(
        sample, key=f"test:rule:{rule.pk}", severity=rule.severity, title=f"Test: {rule.name}", tier=rule.tier,
        job_type=rule.job_type, findings=[finding], url=f"{settings.PUBLIC_URL}/alerts/",
    )  # fmt: skip


def _now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_now()")
        now: datetime = cursor.fetchone()[0]
    return now


def _record(
    action: str, kind: str, pk: int, actor: str, source: str, request_id: str, after: dict[str, Any], *,
    reason: str = "",
) -> None:  # fmt: skip
    audit.record(
        action, actor=actor, object_type=kind, object_id=pk, after=after, reason=reason, source=source,
        request_id=request_id,
    )  # fmt: skip
    # Pages that are open show it at their next poll. Last, since every fold waits for this row.
    BoardVersion.objects.update(n=F("n") + 1, at=Now())
