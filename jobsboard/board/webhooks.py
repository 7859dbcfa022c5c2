"""Webhooks: which receiver is failing? Endpoints with how they do, and what was sent to them.

Not here: tests, resends and the switch (`webhook_acting`), making and changing endpoints (`jobsboard.admin.webhooks`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import connection
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board.params import Params
from jobsboard.board.refresh import answer, live
from jobsboard.models import Event, WebhookDelivery, WebhookEndpoint, every_event
from jobsboard.roles import can, require
from queues.outcomes import LOOK_AT_MOST

PAGE: Final = 50
PENDING_AT_MOST: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STATES: Final = {
    "pending": "waiting or retrying", "delivered": "delivered", "superseded": "superseded", "failed": "given up",
}  # fmt: skip
_FORMATS: Final = {
    "standard": "Standard", "slack": "Slack", "alertmanager": "Alertmanager", "heartbeat": "Dead man’s switch",
}  # fmt: skip
_EVENTS: Final = {Event.FIRING: "fires", Event.UPDATED: "worse", Event.ACKNOWLEDGED: "acknowledged",
                  Event.RESOLVED: "resolved"}  # fmt: skip

# Indexes delivery_of_endpoint and delivery_due.
_COUNTS: Final = """
SELECT e.id, d.delivered, d.failed, p.pending FROM jobsboard_webhookendpoint e
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE state = 'delivered') AS delivered, count(*) FILTER (WHERE state = 'failed') AS failed
  FROM jobsboard_webhookdelivery WHERE endpoint_id = e.id AND created_at > jobs_now() - interval '24 hours') AS d
CROSS JOIN LATERAL (
  SELECT count(*) AS pending FROM (
    SELECT FROM jobsboard_webhookdelivery WHERE endpoint_id = e.id AND state = 'pending' LIMIT %s) AS w) AS p
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One endpoint. Of the last 24 h: `delivered` and `failed` (given up) deliveries; `pending` wait now."""

    endpoint: WebhookEndpoint
    delivered: int
    failed: int
    pending: int
    events: str

    @property
    def fails(self) -> bool:
        """Its last try failed, or it was switched off because its receiver said that it is gone."""
        one = self.endpoint
        return one.failures > 0 if one.enabled else bool(one.disabled_reason)

    @property
    def badge(self) -> tuple[str, str, str]:
        """The state whose look it has, its word and its icon; an empty icon is the look's own."""
        one = self.endpoint
        if not one.enabled:
            return ("dead", "Gone", "bad") if one.disabled_reason else ("cancelled", "Disabled", "")
        if one.failures:
            return "dead", "Fails", "bad"
        return ("confirmed", "Answers", "") if one.last_ok_at else ("cancelled", "Not tried yet", "help")

    @property
    def success(self) -> float | None:
        """The share of settled deliveries that arrived; None without one."""
        settled = self.delivered + self.failed
        return self.delivered / settled if settled else None

    @property
    def why(self) -> str:
        """Why it fails or is disabled."""
        one = self.endpoint
        return (one.last_error if one.failures else "") if one.enabled else one.disabled_reason

    @property
    def format(self) -> str:
        """Its format in a word or two."""
        return _FORMATS.get(self.endpoint.format, self.endpoint.format)

    @property
    def beats(self) -> bool:
        """It is a dead man's switch."""
        return bool(self.endpoint.format == WebhookEndpoint.Format.HEARTBEAT)


@require("view")
@require_safe
@live
def webhooks(request: HttpRequest) -> HttpResponse:
    """List endpoints and what was sent to them."""
    return webhooks_page(request)


def webhooks_page(request: HttpRequest, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render the page."""
    params = Params(request)
    lines = _lines()
    names = {str(line.endpoint.pk): line.endpoint.name for line in lines}
    endpoint = params.choice("endpoint", names)
    state = params.choice("state", _STATES)
    after, before = _mark(params, "after"), _mark(params, "before")
    rows, newer, older = _page(endpoint=endpoint, state=state, after=after, before=before)
    context: dict[str, Any] = {
        "title": "Webhooks",
        "heading": heading(lines),
        "lead": _lead(lines),
        "lines": lines,
        "most": PENDING_AT_MOST,
        "deliveries": rows,
        "newer": newer,
        "older": older,
        "filtered": bool(endpoint or state or after or before),
        "searched": "Newest first. Settled deliveries are kept for 30 days.",
        "notes": params.notes,
        "filters": [
            {"name": "endpoint", "label": "Endpoint", "value": endpoint or "", "options": list(names.items())},
            {"name": "state", "label": "State", "value": state or "", "options": list(_STATES.items())},
        ],
        "may_act": can(request.user, "act"),
        "may_manage": can(request.user, "manage_endpoints"),
        "admin": _admin(request),
        "toast": toast,
        "here": request.get_full_path(),
    }
    return answer(request, "board/webhooks.html", context)


def _admin(request: HttpRequest) -> str:
    """Return where endpoints are made, for who may open it."""
    staff = bool(getattr(request.user, "is_staff", False))
    return reverse("admin:jobsboard_webhookendpoint_add") if staff and can(request.user, "manage_endpoints") else ""


def heading(lines: Sequence[Line]) -> str:
    """Answer the page's question in one sentence."""
    if not lines:
        return "No endpoint is set up: nobody hears of alerts"
    failing, on = [line for line in lines if line.fails], [line for line in lines if line.endpoint.enabled]
    plural = "" if len(lines) == 1 else "s"
    if failing:
        some = f"{len(failing)} of {len(lines)} endpoint{plural}"
        return f"{some} fail{'s' if len(failing) == 1 else ''}: {', '.join(line.endpoint.name for line in failing[:3])}"
    if not on:
        return "Every endpoint is disabled: nobody hears of alerts"
    untried = sum(line.endpoint.last_ok_at is None for line in on)
    if untried == len(on):
        return f"{len(on)} endpoint{'' if len(on) == 1 else 's'}, not tried yet"
    return "The endpoint answers" if len(on) == 1 else f"All {len(on)} endpoints answer"


def _lead(lines: Sequence[Line]) -> str:
    """Say why endpoints fail, what waits, and what was given up."""
    pending, failed = sum(line.pending for line in lines), sum(line.failed for line in lines)
    said = [f"{line.endpoint.name}: {line.why.rstrip('.')}" for line in lines if line.fails and line.why][:2]
    if pending:
        said.append(f"{pending:,} deliver{'y waits' if pending == 1 else 'ies wait'}")
    if failed:
        said.append(f"{failed:,} given up in the last 24 h")
    return f"{'. '.join(said)}." if said else "Alerts are sent from here by the scheduler, whatever workers do."


def _lines() -> list[Line]:
    """Return every endpoint, what fails first. Two statements."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNTS, [PENDING_AT_MOST])
        counts = {row[0]: row[1:] for row in cursor.fetchall()}
    found = []
    for endpoint in WebhookEndpoint.objects.defer("url_sealed", "secret_sealed", "secret_old_sealed").order_by("name"):
        delivered, failed, pending = counts.get(endpoint.pk, (0, 0, 0))
        found.append(
            Line(
                endpoint=endpoint, delivered=delivered, failed=failed, pending=pending,
                events=_events(endpoint),
            )
        )  # fmt: skip
    return sorted(found, key=lambda line: (not line.fails, not line.endpoint.enabled))


def _events(endpoint: WebhookEndpoint) -> str:
    """Say what an endpoint is told."""
    if endpoint.format == WebhookEndpoint.Format.HEARTBEAT:
        return f"every {endpoint.every_seconds} s"
    if set(endpoint.events) >= set(every_event()):
        told = "all"
    else:
        told = ", ".join(word for event, word in _EVENTS.items() if event.value in endpoint.events) or "none"
    return f"{told}, critical only" if endpoint.least_severity == "critical" else told


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a page of the list begins or ends."""

    at: datetime
    pk: str

    def __str__(self) -> str:
        return f"{(self.at - _EPOCH) // timedelta(microseconds=1)}.{self.pk}"


def _mark(params: Params, name: str) -> Mark | None:
    """Return a place in the list, which is no secret and needs no signature."""
    text = params.text(name)
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,17})\.(msg_[0-9a-f]{1,36})", text, re.ASCII)
    if found:
        return Mark(at=_EPOCH + timedelta(microseconds=int(found[1])), pk=found[2])
    params.notes.append("the page mark is not one of this list, so it begins with the newest")
    return None


def _page(
    *, endpoint: str | None, state: str | None, after: Mark | None, before: Mark | None
) -> tuple[Sequence[WebhookDelivery], Mark | None, Mark | None]:
    """Read one page in one statement; with a state other than pending at most 10,000 deliveries are looked at."""
    order = ("created_at", "id") if before is not None else ("-created_at", "-id")
    base: QuerySet[WebhookDelivery] = WebhookDelivery.objects.order_by(*order)
    if endpoint:
        base = base.filter(endpoint_id=int(endpoint))
    if before is not None:
        base = base.filter(Q(created_at=before.at, id__gt=before.pk) | Q(created_at__gt=before.at))
    elif after is not None:
        base = base.filter(Q(created_at=after.at, id__lt=after.pk) | Q(created_at__lt=after.at))
    if state and state != "pending":
        base = WebhookDelivery.objects.filter(id__in=base.values("id")[:LOOK_AT_MOST], state=state).order_by(*order)
    elif state:
        base = base.filter(state=state)
    read = base.select_related("endpoint", "alert").only(
        "id", "event", "sequence", "state", "attempt", "attempts", "due_at", "created_at", "settled_at", "created_by",
        "endpoint__name", "endpoint__enabled", "alert__title",
    )  # fmt: skip
    rows = list(read[: PAGE + 1])
    more, rows = len(rows) > PAGE, rows[:PAGE]
    if before is not None:
        rows.reverse()
    first, last = (_mark_of(rows[0]), _mark_of(rows[-1])) if rows else (None, None)
    if before is not None:
        return rows, first if more else None, last
    return rows, first if after is not None else None, last if more else None


def _mark_of(row: WebhookDelivery) -> Mark:
    return Mark(at=row.created_at, pk=row.pk)
