"""Acting on endpoints, for admins: send a test, disable, enable; and on deliveries, for operators: send again.

What is done is done by `jobsboard.alerts.outbox` and `endpoints`, the audit entry inside. Done twice, each answers the
same again. Not here: making, changing and rotating endpoints (`jobsboard.admin.webhooks`).
"""

from __future__ import annotations

import re
from typing import Any, Final

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from jobsboard.alerts import endpoints, outbox
from jobsboard.alerts.endpoints import Who
from jobsboard.board.alert import alert_page
from jobsboard.board.asking import Asked, Deed, Refused, ask, note, seen_at
from jobsboard.board.webhooks import webhooks_page
from jobsboard.models import WebhookDelivery, WebhookEndpoint
from jobsboard.roles import require

_OF_ENDPOINT: Final = {
    "test": Deed(
        verb="test", title="Send a test to this endpoint?",
        lead="One message, marked as a test, in the endpoint’s format. It is tried and retried like any other.",
        ok="Send the test", keep="Send nothing", icon="hook",
    ),
    "disable": Deed(
        verb="disable", title="Disable this endpoint?",
        lead="It is sent nothing more. What waits for it waits until it is enabled, at most four days.",
        ok="Disable it", keep="Keep it enabled", icon="pause", why="must",
    ),
    "enable": Deed(
        verb="enable", title="Enable this endpoint?",
        lead="It is told of alerts again, from the next one on, and of what still waits for it.",
        ok="Enable it", keep="Keep it disabled", icon="play", why="may",
    ),
}  # fmt: skip
_RESEND: Final = Deed(
    verb="resend", title="Send this message again?",
    lead="The same text under a new id. If the alert has moved on since, its sequence tells the receiver.",
    ok="Send it again", keep="Send nothing", icon="replay", why="may",
)  # fmt: skip
_ALERT: Final = re.compile(r"/alerts/([0-9]{1,18})/", re.ASCII)


@require("manage_endpoints")
@require_http_methods(["GET", "HEAD", "POST"])
def act_on_endpoint(request: HttpRequest, endpoint_id: int, verb: str) -> HttpResponse:
    """Ask, then do one thing to one endpoint."""
    deed, endpoint = _OF_ENDPOINT.get(verb), WebhookEndpoint.objects.filter(pk=endpoint_id).first()
    if deed is None or endpoint is None:
        raise Http404
    asked = _asked(request, deed, about=f"{endpoint.name}, {endpoint.url_shown}",
                   action=reverse("webhook-act", args=[endpoint_id, verb]))  # fmt: skip
    return ask(request, asked, lambda: _to_endpoint(request, endpoint, deed))


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def resend(request: HttpRequest, delivery_id: str) -> HttpResponse:
    """Ask, then send one message again."""
    row = WebhookDelivery.objects.select_related("endpoint").defer("body").filter(pk=delivery_id).first()
    if row is None:
        raise Http404
    asked = _asked(request, _RESEND, about=f"{row.event} to {row.endpoint.name}",
                   action=reverse("webhook-resend", args=[delivery_id]))  # fmt: skip
    return ask(request, asked, lambda: _again(request, row))


def _asked(request: HttpRequest, deed: Deed, *, about: str, action: str) -> Asked:
    """Return the question; behind it is the page Webhooks, or the alert whose deliveries somebody looks at."""
    of_alert = _ALERT.fullmatch(seen_at(request))
    if of_alert:
        number = int(of_alert[1])
        back = reverse("alert", args=[number])
        return Asked(
            deed=deed, about=about, action=action, back=back, crumbs=[("Alerts", reverse("alerts")), (deed.ok, "")],
            draw=lambda seen, toast: alert_page(seen, number, toast=toast),
        )  # fmt: skip
    back = reverse("webhooks")
    return Asked(
        deed=deed, about=about, action=action, back=back, crumbs=[("Webhooks", back), (deed.ok, "")],
        draw=lambda seen, toast: webhooks_page(seen, toast=toast),
    )  # fmt: skip


def _to_endpoint(request: HttpRequest, endpoint: WebhookEndpoint, deed: Deed) -> str:
    """Do it; return what was done. Raises: Refused."""
    try:
        if deed.verb == "test":
            _, new = outbox.send_test(endpoint.pk, **_who(request))
            return f"A test to {endpoint.name} is on its way." if new else "A test was sent a moment ago."
        on = deed.verb == "enable"
        new = endpoints.enable(endpoint.pk, on=on, reason=note(request, deed), who=Who(**_who(request)))
    except WebhookEndpoint.DoesNotExist:
        raise Http404 from None
    except outbox.NotSent as refused:
        raise Refused(str(refused), status=409) from None
    word = "enabled" if on else "disabled"
    return f"{endpoint.name} is {word}." if new else f"{endpoint.name} is {word} already."


def _again(request: HttpRequest, row: WebhookDelivery) -> str:
    """Send it again; return what was done. Raises: Refused."""
    try:
        _, new = outbox.resend(row.pk, reason=note(request, _RESEND), **_who(request))
    except WebhookDelivery.DoesNotExist:
        raise Http404 from None
    except outbox.NotSent as refused:
        raise Refused(str(refused), status=409) from None
    return f"It is on its way to {row.endpoint.name} again." if new else "It was sent again a moment ago."


def _who(request: HttpRequest) -> dict[str, Any]:
    return {
        "actor": request.user.get_username(),
        "source": "ui",
        "request_id": getattr(request, "request_id", ""),
    }
