"""Alerts: what fired, did anyone get it? And the rules that watch.

Not here: one alert (`alert`), what people do about them (`alert_acting`), evaluating rules (`jobsboard.alerts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import F, Func, IntegerField, JSONField, Q, QuerySet, Value
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from jobsboard import alert_rules
from jobsboard.board import shell, signals
from jobsboard.board.jobs import tier_filter
from jobsboard.board.params import Params
from jobsboard.board.refresh import answer, live
from jobsboard.board.signals import Reach
from jobsboard.models import Alert, AlertFinding, AlertRule, Severity
from jobsboard.roles import can, require
from queues.redaction import redact_text

PAGE: Final = 50
STATES: Final = (Alert.State.FIRING.value, Alert.State.ACKNOWLEDGED.value, Alert.State.RESOLVED.value)
"""In the order of the list."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OPEN_FINDINGS: Final = Value("$[*] ? (@.cleared_at == null)")


class _Length(Func):
    """How many items a JSON list has."""

    function = "jsonb_array_length"
    output_field = IntegerField()


@dataclass(frozen=True, kw_only=True)
class Line:
    """One alert in the list. `goes_on`: findings that have not cleared, of `findings`."""

    alert: Alert
    title: str
    findings: int
    goes_on: int
    reach: Reach
    ended: datetime
    silenced: bool


@dataclass(frozen=True, kw_only=True)
class RuleLine:
    """One rule. `state`: firing, not measured, pending, silenced, watching or disabled.

    Pending is breached, and not yet for long enough. `said`: what was found last, or why nothing could be.
    """

    rule: AlertRule
    threshold: str
    scope: str
    state: str
    css: str
    icon: str
    value: str
    said: str
    rank: int
    silenced: bool

    @property
    def calm(self) -> bool:
        """It finds nothing that is told."""
        return self.state != "firing"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a page of the list begins or ends."""

    rank: int
    at: datetime
    pk: int

    def __str__(self) -> str:
        return f"{self.rank}.{(self.at - _EPOCH) // timedelta(microseconds=1)}.{self.pk}"


@require("view")
@require_safe
@live
def alerts(request: HttpRequest) -> HttpResponse:
    """List alerts: those that fire, then acknowledged ones, then resolved ones; newest first."""
    return alerts_page(request)


def alerts_page(request: HttpRequest, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render the list and the rules."""
    params = Params(request)
    board = shell.board_of(request)
    state = params.choice("state", STATES)
    severity = params.choice("severity", Severity.values)
    tier = params.choice("tier", {str(number) for number in board.tiers})
    wanted = Q()
    if severity:
        wanted &= Q(severity=severity)
    if tier:
        wanted &= Q(tier=int(tier))
    after, before = _mark(params, "after"), _mark(params, "before")
    rows, newer, older = _page(wanted, state=state, after=after, before=before)
    lines = _lines(rows, now=board.now)
    found = signals.of(request)
    context: dict[str, Any] = {
        "title": "Alerts",
        "heading": signals.heading(found),
        "lead": _lead(found),
        "lines": lines,
        "newer": newer,
        "older": older,
        "filtered": bool(state or severity or tier or after or before),
        "searched": f"{len(lines)} shown: what fires first, then acknowledged and resolved ones, newest first. Resolved"
        " ones are kept for 90 days.",
        "notes": params.notes,
        "filters": [
            {"name": "state", "label": "State", "value": state or "", "options": [(one, one) for one in STATES]},
            {"name": "severity", "label": "Severity", "value": severity or "", "options": Severity.choices},
            tier_filter(board, tier or ""),
        ],
        "rules": rules(now=board.now),
        "may_act": can(request.user, "act"),
        "may_edit": may_edit(request),
        "toast": toast,
    }
    return answer(request, "board/alerts.html", context)


def _lead(found: signals.Signals) -> str:
    """Say who would hear of the next alert."""
    n = found.endpoints
    if not n:
        return "Nobody hears of the next alert: " + (
            "every endpoint is disabled." if found.endpoints_known else "no endpoint is set up."
        )
    fail = found.endpoints_failing
    more = f"; {fail} {'fails' if fail == 1 else 'fail'}" if fail else ""
    return f"{n} endpoint{' hears' if n == 1 else 's hear'} of the next alert{more}."


def _mark(params: Params, name: str) -> Mark | None:
    """Return a place in the list, which is no secret and needs no signature."""
    text = params.text(name)
    if text is None:
        return None
    parts = text.split(".")
    if len(parts) == 3 and all(part.isascii() and part.isdigit() and len(part) < 18 for part in parts):
        rank, micros, pk = map(int, parts)
        if rank < len(STATES):
            return Mark(rank=rank, at=_EPOCH + timedelta(microseconds=micros), pk=pk)
    params.notes.append("the page mark is not one of this list, so it begins with what fires")
    return None


def _page(
    wanted: Q, *, state: str | None, after: Mark | None, before: Mark | None
) -> tuple[list[Alert], Mark | None, Mark | None]:
    """Read one page in one statement: of each state its own newest, which indexes give, then the first of all."""
    back = before is not None
    order = ("started_at", "id") if back else ("-started_at", "-id")
    parts: list[QuerySet[Alert]] = []
    for rank, name in enumerate(STATES):
        at = before or after
        beyond = at is not None and (rank > at.rank if back else rank < at.rank)
        if beyond or state not in (None, name):
            continue
        part = _columns(Alert.objects.filter(wanted, state=name), rank=rank)
        if at is not None and rank == at.rank:
            part = part.filter(
                Q(started_at=at.at, id__gt=at.pk) | Q(started_at__gt=at.at)
                if back
                else Q(started_at=at.at, id__lt=at.pk) | Q(started_at__lt=at.at)
            )
        parts.append(part.order_by(*order)[: PAGE + 1])
    if not parts:
        return [], None, None
    whole = parts[0].union(*parts[1:], all=True) if len(parts) > 1 else parts[0]
    rows = list(whole.order_by("-rank" if back else "rank", *order)[: PAGE + 1] if len(parts) > 1 else whole)
    more, rows = len(rows) > PAGE, rows[:PAGE]
    if back:
        rows.reverse()
    first, last = (_mark_of(rows[0]), _mark_of(rows[-1])) if rows else (None, None)
    if back:
        return rows, first if more else None, last
    return rows, first if after is not None else None, last if more else None


def _columns(found: QuerySet[Alert], *, rank: int) -> QuerySet[Alert]:
    """Ask for what a line shows; findings are counted and not read."""
    still = Func(F("findings"), _OPEN_FINDINGS, function="jsonb_path_query_array", output_field=JSONField(),
                 template="%(function)s(%(expressions)s::jsonpath)")  # fmt: skip
    return found.annotate(
        rank=Value(rank, output_field=IntegerField()),
        listed=_Length(F("findings")),
        still=_Length(still),
    ).only(
        "id", "state", "severity", "title", "tier", "job_type", "started_at", "acknowledged_by", "acknowledged_at",
        "resolved_at", "silenced_until", "silenced_by",
    )  # fmt: skip


def _mark_of(row: Alert) -> Mark:
    return Mark(rank=STATES.index(row.state), at=row.started_at, pk=row.pk)


def _lines(rows: Sequence[Alert], *, now: datetime) -> list[Line]:
    reach = signals.reach_of([row.pk for row in rows])
    return [
        Line(
            alert=row,
            title=redact_text(row.title),
            findings=row.listed,  # type: ignore[attr-defined]
            goes_on=row.still,  # type: ignore[attr-defined]
            reach=reach[row.pk],
            ended=row.resolved_at or now,
            silenced=row.silenced_until is not None and row.silenced_until > now,
        )
        for row in rows
        # Old ones may have been forgotten in between.
        if row.pk in reach
    ]


_LOOKS: Final = {
    "firing": ("dead", "alert", 0),
    "not measured": ("retrying", "help", 1),
    "pending": ("retrying", "clock", 2),
    "silenced": ("cancelled", "pause", 3),
    "watching": ("cancelled", "ok", 4),
    "disabled": ("cancelled", "cancelled", 5),
}


def rules(*, now: datetime) -> list[RuleLine]:
    """Return every rule, those that find something first. Two statements."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for one in AlertFinding.objects.order_by("fired_at", "id").values("rule_id", "value", "words", "fired_at"):
        found.setdefault(one["rule_id"], []).append(one)
    lines = [_rule_line(rule, found.get(rule.pk, []), now=now) for rule in AlertRule.objects.order_by("name")]
    return sorted(lines, key=lambda line: line.rank)


def _rule_line(rule: AlertRule, found: Sequence[Mapping[str, Any]], *, now: datetime) -> RuleLine:
    silenced = rule.silenced_until is not None and rule.silenced_until > now
    fires = any(one["fired_at"] for one in found)
    # Silence comes after what it hides: a rule that fires in silence still fires.
    state = (
        "disabled" if not rule.enabled else "not measured" if rule.trouble else "firing" if fires
        else "pending" if found else "silenced" if silenced else "watching"
    )  # fmt: skip
    css, icon, rank = _LOOKS[state]
    worst = _worst(rule, found)
    more = f", {len(found)} subjects" if len(found) > 1 else ""
    return RuleLine(
        rule=rule,
        threshold=alert_rules.threshold_words(rule),
        scope=alert_rules.scope_words(rule),
        state=state,
        css=css,
        icon=icon,
        rank=rank,
        silenced=silenced,
        value=alert_rules.value_words(rule.metric, worst["value"]) + more if worst else "",
        said=redact_text(rule.trouble or (worst["words"] if worst else "")),
    )


def _worst(rule: AlertRule, found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    sign = -1 if rule.comparison == AlertRule.Comparison.BELOW else 1
    return max(found, key=lambda one: sign * (one["value"] or 0.0), default=None)


def may_edit(request: HttpRequest) -> bool:
    """Say whether the rules in the admin are open to this person."""
    return can(request.user, "edit_rules") and bool(getattr(request.user, "is_staff", False))
