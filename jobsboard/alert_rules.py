"""Alert rules: what each metric takes, a rule in words, and the one place where people change rules.

Not here: who may (`jobsboard.roles`), the form (`jobsboard.admin.alerts`), the code's rules (`alerts.defaults`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from jobsboard.alerts import defaults
from jobsboard.durations import duration
from jobsboard.models import AlertRule, Metric, Severity
from queues import audit
from queues.models import BoardVersion

Scope = AlertRule.Scope
Comparison = AlertRule.Comparison

FIELDS: Final = (
    "name", "metric", "scope", "tier", "job_type", "reason", "over_seconds", "least_events", "comparison", "threshold",
    "clear_threshold", "for_seconds", "clear_for_seconds", "severity", "enabled", "runbook_url",
)  # fmt: skip
"""What a person may change."""

OVER: Final = frozenset(
    {
        Metric.LAG, Metric.BURN_RATE, Metric.LATE_RATIO, Metric.DEAD_INFLOW, Metric.SUSPECTED_DUPLICATES,
        Metric.NEW_FAILURES, Metric.REGRESSED_FAILURES,
    }
)  # fmt: skip
"""Metrics that look at a stretch of time; the others look at this moment."""

EVENTS: Final = frozenset({Metric.LAG, Metric.BURN_RATE, Metric.LATE_RATIO})
"""Metrics that have no value with too few events."""

_SCOPES: Final[Mapping[Metric, Collection[str]]] = {
    Metric.LIMBO: (Scope.ALL,),
    Metric.ROLLUP_AGE: (Scope.ALL,),
    Metric.PARTITIONS_AHEAD: (Scope.ALL,),
    Metric.UNDELIVERED: (Scope.ALL,),
    Metric.UNMEASURED: (Scope.ALL,),
    Metric.REPLAY_PLANS_STOPPED: (Scope.ALL,),
    Metric.WORKER_MEMORY: (Scope.ALL, Scope.TIER),
}
_DURATIONS: Final = frozenset({Metric.NO_WORKER, Metric.NOT_CONSUMING, Metric.ROLLUP_AGE})
_SHARES: Final = frozenset({Metric.LATE_RATIO, Metric.BACKLOG})
_UNITS: Final[Mapping[Metric, str]] = {
    Metric.LAG: "{} × the window",
    Metric.BURN_RATE: "{} × the budget",
    Metric.BACKLOG: "{} of the limit",
    Metric.OLDEST_OPEN: "{} × its window",
    Metric.PROBE_FAILED: "{} in a row",
    Metric.WORKER_MEMORY: "{} MB",
    Metric.PARTITIONS_AHEAD: "{} days",
    Metric.UNDELIVERED: "{} in a row",
    Metric.UNMEASURED: "{}",
}


def scopes_of(metric: str) -> Collection[str]:
    """Return the scopes that a metric can be asked for."""
    return _SCOPES.get(Metric(metric), (Scope.ALL, Scope.TIER, Scope.TYPE))


def value_words(metric: str, value: float | None) -> str:
    """Say a value with its unit: 14.4 × the budget, 5%, 31s, 2,000 MB. None is no data."""
    if value is None:
        return "no data"
    kind = Metric(metric)
    if kind in _DURATIONS:
        text = duration(value)
    elif kind in _SHARES:
        text = f"{value * 100:.3g}%"
    else:
        text = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return _UNITS.get(kind, "{}").format(text)


def threshold_words(rule: AlertRule) -> str:
    """Say what is too much: at least 5% in 5m, below 3 days."""
    over = f" in {duration(rule.over_seconds)}" if Metric(rule.metric) in OVER else ""
    return f"{rule.get_comparison_display()} {value_words(rule.metric, rule.threshold)}{over}"


def scope_words(rule: AlertRule) -> str:
    """Say what a rule looks at: tier 2, a job type's name, or everything."""
    if rule.scope == Scope.TIER:
        return f"tier {rule.tier}"
    return rule.job_type if rule.scope == Scope.TYPE else "everything"


def sentence(rule: AlertRule) -> str:
    """Say a whole rule in plain words."""
    reason = f" (reason {rule.reason})" if rule.reason else ""
    lasting = f", {duration(rule.for_seconds)} long" if rule.for_seconds else ""
    clear = rule.threshold if rule.clear_threshold is None else rule.clear_threshold
    well = f", {duration(rule.clear_for_seconds)} long" if rule.clear_for_seconds else ""
    few, grave = "", " as critical" if rule.severity == Severity.CRITICAL else " as a warning"
    if Metric(rule.metric) in EVENTS and rule.least_events > 1:
        few = f" With fewer than {rule.least_events:,} events there is no value."
    return (
        f"{rule.get_metric_display()}{reason}, of {scope_words(rule)}. It fires{grave} when the value"
        f" is {threshold_words(rule)}{lasting}. It clears when the value is not"
        f" {rule.get_comparison_display()} {value_words(rule.metric, clear)}{well}.{few}"
    )


def problems(given: Mapping[str, Any]) -> dict[str, str]:
    """Hold the fields of a rule against each other. Shape: field → what is wrong; empty is well.

    `over_seconds` is None where nobody named it.
    """
    found: dict[str, str] = {}
    metric, scope = Metric(given["metric"]), given["scope"]
    if scope not in scopes_of(metric):
        allowed = " or ".join(Scope(one).label.lower() for one in scopes_of(metric))
        found["scope"] = f"This metric is about {allowed}."
    if (scope == Scope.TIER) != (given.get("tier") is not None):
        found["tier"] = "Name the tier." if scope == Scope.TIER else "Leave it empty, or choose the scope One tier."
    if (scope == Scope.TYPE) != bool(given.get("job_type")):
        wrong = "Leave it empty, or choose the scope One job type."
        found["job_type"] = "Name the job type." if scope == Scope.TYPE else wrong
    if given.get("reason") and metric is not Metric.DEAD_INFLOW:
        found["reason"] = "Only new dead letters have a reason."
    if given.get("over_seconds") is not None and metric not in OVER:
        found["over_seconds"] = "This metric looks at this moment: leave it empty."
    if given.get("least_events") and metric not in EVENTS:
        found["least_events"] = "This metric has a value with any number of events: leave it at 0."
    threshold, clear = given["threshold"], given.get("clear_threshold")
    below = given["comparison"] == Comparison.BELOW
    if clear is not None and (clear < threshold if below else clear > threshold):
        side = "not below" if below else "not above"
        found["clear_threshold"] = f"It is {side} the threshold: what has fired clears on the good side of it."
    return found


def save(rule: AlertRule, *, actor: str, source: str = "admin", request_id: str = "") -> bool:
    """Store a new or changed rule with its audit entry; return whether anything was new.

    A default rule whose numbers are no longer the code's is marked edited: newer releases leave it alone.
    """
    with transaction.atomic():
        stored = AlertRule.objects.select_for_update().filter(pk=rule.pk).first() if rule.pk else None
        if stored is None:
            rule.save(force_insert=True)
            _record("alert_rule.created", rule, actor, source, request_id, after=_fields(rule))
            return True
        before, after = _difference(stored, rule)
        if not after:
            return False
        default = defaults.default_of(rule.default_key) if rule.default_key else None
        rule.edited = default is not None and any(
            getattr(rule, name) != getattr(default, name) for name in FIELDS if hasattr(default, name)
        )
        AlertRule.objects.filter(pk=rule.pk).update(
            **{name: getattr(rule, name) for name in FIELDS}, edited=rule.edited, updated_at=Now()
        )
        _record("alert_rule.changed", rule, actor, source, request_id, before=before, after=after)
    return True


def back_to_default(rule_id: int, *, actor: str, source: str = "admin", request_id: str = "") -> bool:
    """Give a default rule the numbers of this release again; return whether anything changed.

    Somebody's own rule that has taken its name keeps it. Whether it is enabled, and its runbook, stay.
    Raises: AlertRule.DoesNotExist.
    """
    with transaction.atomic():
        stored = AlertRule.objects.select_for_update().get(pk=rule_id)
        default = defaults.default_of(stored.default_key) if stored.default_key else None
        if default is None:
            return False
        wanted = {name: getattr(default, name) for name in FIELDS if hasattr(default, name)}
        if AlertRule.objects.filter(name=wanted["name"]).exclude(pk=rule_id).exists():
            wanted["name"] = stored.name
        before = {name: getattr(stored, name) for name in wanted if getattr(stored, name) != wanted[name]}
        if not before and not stored.edited:
            return False
        AlertRule.objects.filter(pk=rule_id).update(**wanted, edited=False, updated_at=Now())
        after = {name: wanted[name] for name in before}
        _record("alert_rule.reset", stored, actor, source, request_id, before=before, after=after)
    return True


def delete(rule: AlertRule, *, actor: str, source: str = "admin", request_id: str = "") -> None:
    """Delete a rule of somebody's own, with what it has found. Raises: ValueError for a default rule."""
    if rule.default_key:
        raise ValueError("a default rule is disabled, not deleted")
    with transaction.atomic():
        before = _fields(rule)
        # Its findings before the board's row, as a round of the engine locks them.
        AlertRule.objects.filter(pk=rule.pk, default_key=None).delete()
        _record("alert_rule.deleted", rule, actor, source, request_id, before=before)


def _fields(rule: AlertRule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in FIELDS}


def _difference(stored: AlertRule, rule: AlertRule) -> tuple[dict[str, Any], dict[str, Any]]:
    old, new = _fields(stored), _fields(rule)
    changed = [name for name in FIELDS if old[name] != new[name]]
    return {name: old[name] for name in changed}, {name: new[name] for name in changed}


def _record(
    action: str, rule: AlertRule, actor: str, source: str, request_id: str, *,
    before: dict[str, Any] | None = None, after: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    audit.record(
        action, actor=actor, object_type="alert_rule", object_id=rule.pk, before=before, after=after, source=source,
        request_id=request_id,
    )  # fmt: skip
    # Pages that are open show it at their next poll. Last, since every fold waits for this row.
    BoardVersion.objects.update(n=F("n") + 1, at=Now())
