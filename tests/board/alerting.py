"""Alerts as people find them on the pages: what fires, what is over, and the messages that were made of them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobsboard.models import Alert, AlertFinding, WebhookDelivery, WebhookEndpoint
from tests.alerts.endpoints import make_alert, make_endpoint, make_finding
from tests.alerts.rounds import make_rule
from tests.factories import sql


def now() -> dt.datetime:
    """Return the database's time."""
    found: dt.datetime = sql("SELECT jobs_now()")[0][0]
    return found


def ago(**span: float) -> dt.datetime:
    """Return a time in the past."""
    return now() - dt.timedelta(**span)


def fire(key: str = "tier2", **overrides: Any) -> Alert:
    """Make an alert that fires and that endpoints were told of."""
    return make_alert(key, **{"told": "alert.firing", "started_at": ago(minutes=20), **overrides})


def resolve(key: str, **overrides: Any) -> Alert:
    """Make an alert that is over."""
    return fire(key, **{"state": "resolved", "resolved_at": now(), **overrides})


def deliver(alert: Alert, endpoint: WebhookEndpoint, state: str = "delivered", **overrides: Any) -> WebhookDelivery:
    """Make a message to an endpoint in a state."""
    settled = {} if state == "pending" else {"settled_at": now(), "due_at": None}
    values = {
        "id": f"msg_{WebhookDelivery.objects.count():032x}", "event": "alert.firing", "body": "{}", "attempt": 1,
        **settled, **overrides,
    }  # fmt: skip
    return WebhookDelivery.objects.create(alert=alert, endpoint=endpoint, state=state, **values)


def make_pages(said: str = "Tier 2 is late") -> list[str]:
    """Make an alert of each state with everything on it that somebody says; return the pages that show them."""
    rule = make_rule(name=said[:100], runbook_url="https://wiki.example/" + said)
    AlertFinding.objects.create(rule=rule, subject=said, words=said, since=now(), fired_at=now(), value=2)
    finding = make_finding(
        rule=rule.pk, rule_name=said, subject=f"type:{said}", words=said, runbook_url=said, severity=said
    )
    silence: dict[str, Any] = {"silenced_until": now() + dt.timedelta(hours=1), "silenced_by": said}
    alert = fire(title=said, findings=[finding], job_type=said[:64], **silence)
    known: dict[str, Any] = {"note": said, "acknowledged_by": said, "acknowledged_at": now()}
    fire("tier1", state="acknowledged", severity="critical", title=said, **known)
    over = resolve("tier3", title=said, **known)
    tried = {"at": ago(minutes=1).isoformat(), "status": 500, "took_seconds": 0.1, "error": said, "excerpt": said}
    ops = make_endpoint(said[:100], last_error=said)
    deliver(alert, ops, "failed", attempts=[tried])
    deliver(over, ops)
    paths = [f"/alerts/{alert.pk}/{verb}/" for verb in ("acknowledge", "silence", "speak")]
    paths += [f"/alerts/rules/{rule.pk}/{verb}/" for verb in ("silence", "test")]
    return ["/alerts/", "/alerts/?state=resolved", f"/alerts/{alert.pk}/", f"/alerts/{over.pk}/", *paths]
