"""Endpoints, alerts and deliveries for tests, as plain functions."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from jobsboard.models import Alert, Event, WebhookDelivery, WebhookEndpoint

T0: Final = dt.datetime(2026, 11, 22, 3, 0, tzinfo=dt.UTC)


def make_endpoint(name: str = "ops", **overrides: Any) -> WebhookEndpoint:
    """Make an endpoint that nothing is sent to: its address and secret are empty."""
    values: dict[str, Any] = {"name": name, "url_sealed": b"", "url_shown": "https://hooks.example", **overrides}
    return WebhookEndpoint.objects.create(**values)


def make_finding(**overrides: Any) -> dict[str, Any]:
    """Make a finding as the engine lists it in its alert."""
    return {
        "rule": 1, "rule_name": "Tier 2: late and stale", "metric": "late_ratio", "subject": "tier2",
        "severity": "warning", "tier": 2, "words": "28.2% late in 5 min", "value": 0.282,
        "since": "2026-11-22T02:41:00+00:00", "cleared_at": None, "runbook_url": "https://wiki.example/late",
        **overrides,
    }  # fmt: skip


def make_alert(key: str = "tier2", **overrides: Any) -> Alert:
    """Make an alert that fires."""
    values: dict[str, Any] = {
        "key": key, "severity": "warning", "title": "28.2% late in 5 min", "tier": 2, "started_at": T0, "sequence": 1,
        "findings": [make_finding()], **overrides,
    }  # fmt: skip
    return Alert.objects.create(**values)


def moved_on(alert: Alert, event: Event, **changes: Any) -> Alert:
    """Bring an alert to the state of an event, as the engine does before it is told."""
    state = {Event.ACKNOWLEDGED: "acknowledged", Event.RESOLVED: "resolved"}.get(event, "firing")
    alert.state, alert.sequence = state, alert.sequence + 1
    if event is Event.RESOLVED:
        alert.resolved_at = T0 + dt.timedelta(hours=1)
    if event is Event.ACKNOWLEDGED:
        alert.acknowledged_at, alert.acknowledged_by = T0 + dt.timedelta(minutes=5), "ada"
    for name, value in changes.items():
        setattr(alert, name, value)
    alert.save()
    return alert


def told(endpoint: WebhookEndpoint) -> list[str]:
    """Return the events that an endpoint is sent, in order."""
    rows = WebhookDelivery.objects.filter(endpoint=endpoint).order_by("sequence", "created_at", "id")
    return [row.event.removeprefix("alert.") for row in rows]
