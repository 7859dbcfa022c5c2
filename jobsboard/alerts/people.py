"""What a person does about alerts: acknowledge, silence, speak again. Each is audited in its own transaction.

Twice is once: the same again changes nothing. Endpoints hear of it from the engine, within its next round.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from jobsboard.models import Alert, AlertRule
from queues import audit
from queues.models import BoardVersion
from queues.redaction import redact_text

LONGEST_SILENCE: Final = timedelta(days=30)
NOTE_CHARACTERS: Final = 1000


class AlertRefused(ValueError):
    """It cannot be done; the text says why. Nothing was changed."""


def acknowledge(
    alert_id: int, *, actor: str, note: str, source: str = "ui", request_id: str = ""
) -> tuple[Alert, bool]:
    """Say that somebody is on it; return the alert and whether that is new.

    Raises: Alert.DoesNotExist, AlertRefused when it is resolved.
    """
    note = redact_text(note)[:NOTE_CHARACTERS]
    with transaction.atomic():
        alert = Alert.objects.select_for_update().get(pk=alert_id)
        if alert.state == Alert.State.ACKNOWLEDGED:
            return alert, False
        if alert.state == Alert.State.RESOLVED:
            raise AlertRefused("The alert is resolved already.")
        alert.state, alert.acknowledged_by, alert.note = Alert.State.ACKNOWLEDGED, actor[:150], note
        alert.acknowledged_at = _now()
        alert.save(update_fields=["state", "acknowledged_by", "acknowledged_at", "note"])
        _record("alert.acknowledged", "alert", alert.pk, actor, note, source, request_id, {"title": alert.title})
    return alert, True


def silence_alert(
    alert_id: int, *, until: datetime | None, actor: str, note: str, source: str = "ui", request_id: str = ""
) -> Alert:
    """Tell nobody of changes of an open alert until then; None: speak again. That it is over is told all the same.

    Raises: Alert.DoesNotExist, AlertRefused.
    """
    with transaction.atomic():
        _check(until)
        alert = Alert.objects.select_for_update().get(pk=alert_id)
        if alert.state == Alert.State.RESOLVED:
            raise AlertRefused("The alert is resolved already.")
        if alert.silenced_until == until:
            return alert
        before = alert.silenced_until
        alert.silenced_until, alert.silenced_by = until, actor[:150] if until else ""
        alert.save(update_fields=["silenced_until", "silenced_by"])
        action = "alert.silenced" if until else "alert.unsilenced"
        _record(action, "alert", alert.pk, actor, note, source, request_id, _until(until), before=_until(before))
    return alert


def silence_rule(
    rule_id: int, *, until: datetime | None, actor: str, note: str, source: str = "ui", request_id: str = ""
) -> AlertRule:
    """Let no alert speak that only this rule sees, until then; None: speak again.

    Raises: AlertRule.DoesNotExist, AlertRefused.
    """
    with transaction.atomic():
        _check(until)
        rule = AlertRule.objects.select_for_update().get(pk=rule_id)
        if rule.silenced_until == until:
            return rule
        before = rule.silenced_until
        rule.silenced_until, rule.silenced_by = until, actor[:150] if until else ""
        rule.save(update_fields=["silenced_until", "silenced_by"])
        action = "alert_rule.silenced" if until else "alert_rule.unsilenced"
        after = {"rule": rule.name, **(_until(until) or {})}
        _record(action, "alert_rule", rule.pk, actor, note, source, request_id, after, before=_until(before))
    return rule


def _check(until: datetime | None) -> None:
    if until is None:
        return
    now = _now()
    if until.tzinfo is None or until <= now:
        raise AlertRefused("The end of a silence lies ahead.")
    if until > now + LONGEST_SILENCE:
        raise AlertRefused(f"A silence lasts {LONGEST_SILENCE.days} days at most.")


def _now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_now()")
        now: datetime = cursor.fetchone()[0]
    return now


def _until(until: datetime | None) -> dict[str, Any] | None:
    return {"until": until.isoformat()} if until else None


def _record(
    action: str, kind: str, pk: int, actor: str, note: str, source: str, request_id: str,
    after: dict[str, Any] | None, *, before: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    audit.record(
        action, actor=actor, object_type=kind, object_id=pk, before=before, after=after, reason=note, source=source,
        request_id=request_id,
    )  # fmt: skip
    # Pages that are open show it at their next poll. Last, since every fold waits for this row.
    BoardVersion.objects.update(n=F("n") + 1, at=Now())
