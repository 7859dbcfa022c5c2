"""Acting on alerts and rules: acknowledge, silence, speak again, test-fire.

What is done is done by `jobsboard.alerts.people` and `outbox`, the audit entry inside. Done twice, each answers the
same again. Not here: endpoints and deliveries (`webhook_acting`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.alerts import outbox, people
from jobsboard.alerts.people import AlertRefused
from jobsboard.board import shell
from jobsboard.board.alert import alert_page
from jobsboard.board.alerts import alerts_page
from jobsboard.board.asking import Asked, Deed, Refused, ask, note
from jobsboard.models import Alert, AlertRule
from jobsboard.roles import require
from queues.redaction import redact_text

_OF_ALERT: Final = {
    "acknowledge": Deed(
        verb="acknowledge", title="Acknowledge this alert?",
        lead="It says that somebody is on it. Endpoints are told once; it fires again if it gets worse.",
        ok="Acknowledge", keep="Leave it firing", icon="user", why="may",
    ),
    "silence": Deed(
        verb="silence", title="Silence this alert?",
        lead="Nobody is told of changes until then. Whoever was told that it fires is told that it is over.",
        ok="Silence", keep="Let it speak", icon="pause", why="must",
    ),
    "speak": Deed(
        verb="speak", title="Let this alert speak again?", lead="Endpoints are told how it stands, within seconds.",
        ok="Let it speak", keep="Keep it silent", icon="play", why="may",
    ),
}  # fmt: skip
_OF_RULE: Final = {
    "silence": Deed(
        verb="silence", title="Silence this rule?",
        lead="It goes on watching. Alerts that only silenced rules see are opened and told to nobody.",
        ok="Silence", keep="Let it speak", icon="pause", why="must",
    ),
    "speak": Deed(
        verb="speak", title="Let this rule speak again?", lead="What it finds is told again, within seconds.",
        ok="Let it speak", keep="Keep it silent", icon="play", why="may",
    ),
    "test": Deed(
        verb="test", title="Test-fire this rule?",
        lead="Every enabled endpoint gets one message, marked as a test, with what this rule would say.",
        ok="Send the test", keep="Send nothing", icon="alert", why="",
    ),
}  # fmt: skip
_SPANS: Final = ((1, "1 h"), (4, "4 h"), (24, "24 h"))


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_alert(request: HttpRequest, alert_id: int, verb: str) -> HttpResponse:
    """Ask, then do one thing to one alert."""
    deed, alert = _OF_ALERT.get(verb), Alert.objects.defer("findings").filter(pk=alert_id).first()
    if deed is None or alert is None:
        raise Http404
    back = reverse("alert", args=[alert_id])
    asked = Asked(
        deed=deed,
        about=redact_text(alert.title),
        action=reverse("alert-act", args=[alert_id, verb]),
        back=back,
        crumbs=[("Alerts", reverse("alerts")), (f"Alert {alert_id}", back), (deed.ok, "")],
        draw=lambda seen, toast: alert_page(seen, alert_id, toast=toast),
        extra=_times(request, deed),
    )
    return ask(request, asked, lambda: _to_alert(request, alert_id, deed))


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_rule(request: HttpRequest, rule_id: int, verb: str) -> HttpResponse:
    """Ask, then do one thing to one rule."""
    deed, rule = _OF_RULE.get(verb), AlertRule.objects.filter(pk=rule_id).first()
    if deed is None or rule is None:
        raise Http404
    back = reverse("alerts")
    asked = Asked(
        deed=deed,
        about=rule.name,
        action=reverse("alert-rule-act", args=[rule_id, verb]),
        back=back,
        crumbs=[("Alerts", back), (deed.ok, "")],
        draw=lambda seen, toast: alerts_page(seen, toast=toast),
        extra=_times(request, deed),
    )
    return ask(request, asked, lambda: _to_rule(request, rule_id, deed))


def _who(request: HttpRequest) -> dict[str, Any]:
    return {
        "actor": request.user.get_username(),
        "source": "ui",
        "request_id": getattr(request, "request_id", ""),
    }


def _to_alert(request: HttpRequest, alert_id: int, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    why, who = note(request, deed), _who(request)
    until = _until(request) if deed.verb == "silence" else None
    try:
        if deed.verb == "acknowledge":
            alert, new = people.acknowledge(alert_id, note=why, **who)
            return "Acknowledged." if new else f"{alert.acknowledged_by} has acknowledged it before."
        people.silence_alert(alert_id, until=until, note=why, **who)
    except Alert.DoesNotExist:
        raise Http404 from None
    except AlertRefused as refused:
        raise Refused(str(refused), status=409) from None
    return _silence_words(until)


def _to_rule(request: HttpRequest, rule_id: int, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    why, who = note(request, deed), _who(request)
    until = _until(request) if deed.verb == "silence" else None
    try:
        if deed.verb == "test":
            made, new = outbox.test_fire(rule_id, **who)
            return _sent_words(len(made), new=new)
        people.silence_rule(rule_id, until=until, note=why, **who)
    except AlertRule.DoesNotExist:
        raise Http404 from None
    except (AlertRefused, outbox.NotSent) as refused:
        raise Refused(str(refused), status=409) from None
    return _silence_words(until)


def _silence_words(until: datetime | None) -> str:
    return f"Silenced until {until:%-d %b %H:%M} UTC." if until else "It speaks again."


def _sent_words(n: int, *, new: bool) -> str:
    sent = f"{n} test message{' is' if n == 1 else 's are'} on {'its' if n == 1 else 'their'} way."
    return sent if new else f"Sent a moment ago: {sent}"


def _until(request: HttpRequest) -> datetime:
    """Read the end of a silence: a time of the person's own, or one of those offered. Raises: Refused.

    What is offered is a time and no length, so that the form sent twice says the same twice.
    """
    text = request.POST.get("until", "").strip() or request.POST.get("for", "").strip()
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused("Say until when. Example: 2026-05-31 18:00 (UTC).", status=422) from None


def _times(request: HttpRequest, deed: Deed) -> dict[str, Any]:
    """Offer ends of a silence, on whole minutes; keep what was chosen."""
    if deed.verb != "silence":
        return {}
    now = shell.board_of(request).now
    begin = (now + timedelta(minutes=1)).replace(second=0, microsecond=0)
    ends = [(begin + timedelta(hours=hours), words) for hours, words in _SPANS]
    return {
        "spans": [(f"{end:%Y-%m-%dT%H:%MZ}", f"{words}, until {end:%H:%M} UTC") for end, words in ends],
        "until": request.POST.get("until", "")[:40],
        "chosen": request.POST.get("for", "")[:40],
    }
