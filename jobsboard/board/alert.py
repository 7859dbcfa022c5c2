"""One alert: what it consists of, whom it reached, what people did about it.

Not here: the list (`alerts`), what people do about it (`alert_acting`), deliveries on their own (`webhooks`),
sending one again (`webhook_acting`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard import alert_rules
from jobsboard.board import shell, signals
from jobsboard.board.alerts import may_edit
from jobsboard.board.changes import url_of_dependency
from jobsboard.board.job_evidence import moment
from jobsboard.board.refresh import answer, live
from jobsboard.models import Alert, AlertRule, Metric, Severity, WebhookDelivery
from jobsboard.roles import can, require
from queues.models import AuditEntry
from queues.redaction import redact_text

DELIVERIES_SHOWN: Final = 50
AUDIT_SHOWN: Final = 12
_DEAD: Final = frozenset({Metric.DEAD_INFLOW, Metric.DEAD_OPEN, Metric.NEW_FAILURES, Metric.REGRESSED_FAILURES})
_WAITING: Final = frozenset({Metric.BACKLOG, Metric.OLDEST_OPEN})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of an alert. `url` and `link`: the page that explains it; `runbook`: empty unless http or https."""

    rule: str
    rule_url: str
    words: str
    severity: str
    value: str
    threshold: str
    since: datetime | None
    cleared: datetime | None
    url: str
    link: str
    runbook: str

    @property
    def css(self) -> str:
        """The state whose colour it has."""
        return "cancelled" if self.cleared else "dead" if self.severity == Severity.CRITICAL else "retrying"

    @property
    def icon(self) -> str:
        """The sign beside its severity."""
        return "ok" if self.cleared else "bad" if self.severity == Severity.CRITICAL else "warn"


@require("view")
@require_safe
@live
def alert(request: HttpRequest, alert_id: int) -> HttpResponse:
    """Show one alert."""
    return alert_page(request, alert_id)


def alert_page(request: HttpRequest, alert_id: int, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render one alert."""
    found = Alert.objects.filter(pk=alert_id).first()
    if found is None:
        raise Http404
    board = shell.board_of(request)
    findings = [one for one in found.findings if isinstance(one, dict)]
    known = AlertRule.objects.in_bulk({one["rule"] for one in findings if isinstance(one.get("rule"), int)})
    editing = may_edit(request)
    deliveries = list(
        WebhookDelivery.objects.filter(alert=found).select_related("endpoint")
        .order_by("-created_at", "-id")[: DELIVERIES_SHOWN + 1]
    )  # fmt: skip
    shown = [_finding(one, known.get(one.get("rule", 0)), types=board.types, editing=editing) for one in findings]
    context: dict[str, Any] = {
        "title": f"Alert {found.pk}",
        "crumbs": [("Alerts", reverse("alerts")), (f"Alert {found.pk}", "")],
        "alert": found,
        "heading": signals.short(redact_text(found.title)),
        "findings": sorted(shown, key=lambda one: one.cleared is not None),
        "goes_on": sum(one.cleared is None for one in shown),
        "reach": signals.reach_of([found.pk]).get(found.pk),
        "ended": found.resolved_at or board.now,
        "is_open": found.state != Alert.State.RESOLVED,
        "silenced": found.silenced_until is not None and found.silenced_until > board.now,
        "type_known": found.job_type in board.types,
        "deliveries": deliveries[:DELIVERIES_SHOWN],
        "more_deliveries": len(deliveries) > DELIVERIES_SHOWN,
        "audit": list(
            AuditEntry.objects.filter(object_type="alert", object_id=str(found.pk)).order_by("-id")[:AUDIT_SHOWN]
        ),
        "may_act": can(request.user, "act"),
        "toast": toast,
    }
    return answer(request, "board/alert.html", context, poll=15)


def _finding(one: Mapping[str, Any], rule: AlertRule | None, *, types: Collection[str], editing: bool) -> Finding:
    metric = str(one.get("metric") or (rule.metric if rule else ""))
    measured = metric in Metric.values
    url, link = explained(one, metric=metric, reason=rule.reason if rule else "", types=types)
    runbook = str(one.get("runbook_url") or "")
    return Finding(
        rule=str(one.get("rule_name") or "a rule that is gone"),
        rule_url=reverse("admin:jobsboard_alertrule_change", args=[rule.pk]) if rule and editing else "",
        words=redact_text(str(one.get("words") or "")),
        severity=str(one.get("severity") or ""),
        value=alert_rules.value_words(metric, _number(one.get("value"))) if measured else "",
        threshold=alert_rules.threshold_words(rule) if rule and rule.metric == metric else "",
        since=moment(one.get("since")),
        cleared=moment(one.get("cleared_at")),
        url=url,
        link=link,
        runbook=runbook if runbook.startswith(("http://", "https://")) else "",
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def explained(one: Mapping[str, Any], *, metric: str, reason: str, types: Collection[str]) -> tuple[str, str]:
    """Return the address of the page that explains a finding, and its words; empty where there is none."""
    kind, _, name = str(one.get("subject") or "").partition(":")
    query: dict[str, str] = {}
    if kind.startswith("tier") and kind[4:] in ("1", "2", "3"):
        query["tier"] = kind[4:]
    elif kind == "queue" and name[4:5] in ("1", "2", "3"):
        return _at("jobs", {"state": "accepted", "tier": name[4]}), "Waiting jobs"
    elif kind == "probe":
        return "/probes/", "Probes"
    elif kind == "dependency":
        return url_of_dependency(name), "Circuit breakers"
    elif kind == "endpoint":
        return "/webhooks/", "Webhooks"
    elif kind == "type" and name in types:
        query["type"] = name
    elif kind != "all":
        return ("/", "Overview") if kind == "workers" else ("", "")
    return _of_jobs(query, metric=metric, reason=reason)


def _of_jobs(query: Mapping[str, str], *, metric: str, reason: str) -> tuple[str, str]:
    """Lead to the page of what a finding counts: of a tier, of a type, or of all."""
    if metric in _DEAD:
        return _at("dead-letters", {**query, "reason": reason}), "Dead letters"
    if metric == Metric.REPLAY_PLANS_STOPPED:
        return reverse("replays"), "Replays"
    if metric == Metric.LIMBO:
        return _at("jobs", {"state": "processing"}), "Running jobs"
    if metric in _WAITING and query:
        return _at("jobs", {**query, "state": "accepted"}), "Waiting jobs"
    if "type" in query:
        twice = metric == Metric.SUSPECTED_DUPLICATES
        return reverse("job-type-twice" if twice else "job-type", args=[query["type"]]), query["type"]
    if "tier" in query:
        return _at("job-types", query), f"Tier {query['tier']}"
    return (_at("job-types", {}), "Job types") if metric in (Metric.LAG, Metric.BURN_RATE) else ("/", "Overview")


def _at(name: str, query: Mapping[str, str]) -> str:
    given = sorted((key, value) for key, value in query.items() if value)
    return reverse(name) + (f"?{urlencode(given)}" if given else "")
