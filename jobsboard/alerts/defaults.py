"""The rules that every installation begins with. In the admin a person may change or disable each; none is deleted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from django.db import transaction
from django.db.models.functions import Now

from jobsboard.models import AlertRule, Metric, Severity

_TIERS: Final = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Default:
    """One rule; its fields are those of AlertRule."""

    default_key: str
    name: str
    metric: str
    threshold: float
    scope: str = AlertRule.Scope.ALL.value
    tier: int | None = None
    reason: str = ""
    over_seconds: int = 300
    least_events: int = 0
    comparison: str = AlertRule.Comparison.AT_LEAST.value
    clear_threshold: float | None = None
    for_seconds: int = 0
    clear_for_seconds: int = 120
    severity: str = Severity.WARNING.value


def _of_tiers(metric: Metric, name: str, thresholds: tuple[float, float, float], **rest: Any) -> Iterator[Default]:
    """Make one rule for each tier; `severities` are of tiers 1 to 3, warnings unless said."""
    severities = rest.pop("severities", (Severity.CRITICAL, Severity.WARNING, Severity.WARNING))
    for tier, threshold, severity in zip(_TIERS, thresholds, severities, strict=True):
        yield Default(
            default_key=f"{metric.value}.tier{tier}",
            name=f"Tier {tier}: {name}",
            metric=metric.value,
            scope=AlertRule.Scope.TIER.value,
            tier=tier,
            threshold=threshold,
            severity=severity.value,
            **rest,
        )


_WARNING: Final = (Severity.WARNING,) * 3
DEFAULTS: Final = (
    # 14.4 times the budget of 30 days is a fiftieth of it in an hour.
    *_of_tiers(
        Metric.BURN_RATE, "promise is not kept", (14.4, 14.4, 14.4), least_events=20, clear_threshold=6.0,
        severities=(Severity.CRITICAL, Severity.CRITICAL, Severity.WARNING),
    ),
    # Sooner than the promise, which is judged when whole minutes of windows have passed.
    *_of_tiers(
        Metric.LATE_RATIO, "late and stale", (0.05, 0.10, 0.20), over_seconds=120, least_events=20, for_seconds=10,
    ),
    *_of_tiers(
        Metric.LAG, "outcome lag", (2.0, 3.0, 5.0), least_events=20, for_seconds=60, clear_threshold=1.0,
        severities=_WARNING,
    ),
    *_of_tiers(
        Metric.DEAD_INFLOW, "new dead letters", (5, 20, 50), severities=_WARNING,
    ),
    *_of_tiers(Metric.BACKLOG, "backlog", (0.8, 0.8, 0.8), for_seconds=60, clear_threshold=0.6, severities=_WARNING),
    *_of_tiers(
        Metric.OLDEST_OPEN, "oldest open job", (5, 20, 60), for_seconds=60, severities=_WARNING,
    ),
    *_of_tiers(
        Metric.SUSPECTED_DUPLICATES, "suspected duplicate effects", (1, 50, 100), severities=_WARNING,
    ),
    # A probe that fails is sent again soon: twice in a row is no accident.
    *_of_tiers(Metric.PROBE_FAILED, "probe", (1, 2, 2)),
    Default(
        default_key="dead_open.tier1", name="Tier 1: dead letters open", metric=Metric.DEAD_OPEN.value,
        scope=AlertRule.Scope.TIER.value, tier=1, threshold=1, for_seconds=60,
    ),
    *_of_tiers(Metric.NEW_FAILURES, "a new failure", (1, 1, 3), over_seconds=900, severities=_WARNING),
    *_of_tiers(
        Metric.REGRESSED_FAILURES, "a failure came back", (1, 1, 1), over_seconds=3600, severities=_WARNING,
    ),
    Default(
        default_key="dead_inflow.no_handler", name="Jobs without a handler", metric=Metric.DEAD_INFLOW.value,
        reason="no_handler", threshold=1,
    ),
    Default(
        default_key="dead_inflow.poison", name="Jobs that kill their worker", metric=Metric.DEAD_INFLOW.value,
        reason="poison", threshold=1,
    ),
    # Trials that go well close it within seconds; what it held then still has to be worked off.
    Default(
        default_key="breaker_open", name="A circuit breaker is open", metric=Metric.BREAKER_OPEN.value, threshold=1,
        for_seconds=5,
    ),
    # It waits for somebody to resume or to abort it, and is over when somebody did.
    Default(
        default_key="replay_plans_stopped", name="A replay plan was stopped by its rule",
        metric=Metric.REPLAY_PLANS_STOPPED.value, threshold=1, clear_for_seconds=0,
    ),
    Default(
        default_key="no_worker", name="No worker on a queue", metric=Metric.NO_WORKER.value, threshold=15,
        # A worker that signs off in a deployment is gone at once; the next one is there before this has passed.
        for_seconds=30, clear_for_seconds=30, severity=Severity.CRITICAL.value,
    ),
    Default(
        default_key="not_consuming", name="A queue does not consume", metric=Metric.NOT_CONSUMING.value, threshold=60,
        for_seconds=30, severity=Severity.CRITICAL.value,
    ),
    Default(
        default_key="limbo", name="Jobs in limbo", metric=Metric.LIMBO.value, threshold=1, for_seconds=60,
        severity=Severity.CRITICAL.value,
    ),
    Default(
        default_key="worker_memory", name="Memory of a worker", metric=Metric.WORKER_MEMORY.value, threshold=2000,
        for_seconds=300, clear_threshold=1800,
    ),
    Default(
        default_key="rollup_age", name="The numbers stand still", metric=Metric.ROLLUP_AGE.value, threshold=60,
        for_seconds=15, severity=Severity.CRITICAL.value,
    ),
    Default(
        default_key="partitions_ahead", name="No place for new jobs", metric=Metric.PARTITIONS_AHEAD.value,
        comparison=AlertRule.Comparison.BELOW.value, threshold=3, severity=Severity.CRITICAL.value,
    ),
    Default(
        default_key="unmeasured", name="Alert rules that cannot be measured", metric=Metric.UNMEASURED.value,
        threshold=1, for_seconds=30, severity=Severity.CRITICAL.value,
    ),
    Default(
        default_key="undelivered", name="Alerts do not arrive", metric=Metric.UNDELIVERED.value, threshold=5,
        clear_for_seconds=0,
    ),
)  # fmt: skip

_NUMBERS: Final = tuple(field.name for field in fields(Default) if field.name != "default_key")


def ensure() -> None:
    """Make the rules that are missing, and give those that nobody changed the numbers of this release."""
    rules = list(AlertRule.objects.all())
    known = {rule.default_key: rule for rule in rules if rule.default_key}
    named = {rule.name: rule for rule in rules}
    for default in DEFAULTS:
        wanted = asdict(default)
        rule = known.get(default.default_key)
        if rule is not None and named.get(default.name, rule) is not rule:
            # Somebody's own rule has that name and keeps it.
            wanted["name"] = rule.name
        if rule is None:
            _make(wanted)
        elif not rule.edited and any(getattr(rule, name) != wanted[name] for name in _NUMBERS):
            AlertRule.objects.filter(pk=rule.pk, edited=False).update(
                **{name: wanted[name] for name in _NUMBERS}, updated_at=Now()
            )


def _make(wanted: dict[str, Any]) -> None:
    """Make a rule; a rival that was faster made the same, and somebody's own rule of that name keeps it."""
    with transaction.atomic():
        if AlertRule.objects.filter(name=wanted["name"]).exclude(default_key=wanted["default_key"]).exists():
            wanted = {**wanted, "name": f"{wanted['name']} ({wanted['default_key']})"}
        AlertRule.objects.bulk_create([AlertRule(**wanted)], ignore_conflicts=True)


def default_of(key: str) -> Default | None:
    """Return a default rule by its key."""
    return next((one for one in DEFAULTS if one.default_key == key), None)
