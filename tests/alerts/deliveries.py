"""Deliveries as they come about, and how they stand, for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from jobsboard.alerts import outbox
from jobsboard.models import Event, WebhookDelivery
from tests.alerts.endpoints import T0, make_alert, moved_on
from tests.factories import sql


def announced(key: str = "tier2", **overrides: Any) -> WebhookDelivery:
    """Tell of an alert, and return the newest delivery of it."""
    alert = make_alert(key, **overrides)
    outbox.announce(alert, Event.FIRING, now=T0)
    sql("UPDATE jobsboard_webhookdelivery SET created_at = jobs_now(), due_at = jobs_now() WHERE created_at = %s", T0)
    return WebhookDelivery.objects.filter(alert=alert).latest("created_at")


def told_of(alert: Any, event: Event) -> WebhookDelivery:
    """Move an alert on, tell of it, and return the delivery."""
    before = set(WebhookDelivery.objects.values_list("pk", flat=True))
    outbox.announce(moved_on(alert, event), event, now=T0)
    sql("UPDATE jobsboard_webhookdelivery SET created_at = jobs_now(), due_at = jobs_now() WHERE created_at = %s", T0)
    return WebhookDelivery.objects.exclude(pk__in=before).get()


def fresh(row: WebhookDelivery) -> WebhookDelivery:
    """Read a delivery again."""
    return WebhookDelivery.objects.select_related("endpoint").get(pk=row.pk)


def due_in(row: WebhookDelivery) -> float:
    """Return the seconds to the next try of a delivery."""
    [(seconds,)] = sql("SELECT extract(epoch FROM due_at - jobs_now()) FROM jobsboard_webhookdelivery WHERE id = %s",
                       row.pk)  # fmt: skip
    return float(seconds)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("waited 10 s in vain")
