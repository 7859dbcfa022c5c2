"""Rounds of the engine with readings that a test makes up, and a record of what endpoints are told."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from jobsboard.alerts import engine
from jobsboard.alerts.metrics import Reading
from jobsboard.models import Alert, AlertRule, Event, Metric

T0 = dt.datetime(2026, 11, 22, 3, 0, tzinfo=dt.UTC)


def make_rule(metric: Metric = Metric.LATE_RATIO, *, tier: int | None = 2, **overrides: Any) -> AlertRule:
    """Make a rule that fires at 1 or more, at once, and clears at once."""
    scope = {"scope": "tier", "tier": tier} if tier else {"scope": "all", "tier": None}
    values: dict[str, Any] = {
        "name": f"{metric.value} {tier} {AlertRule.objects.count()}", "metric": metric.value, "threshold": 1.0,
        "comparison": "at_least", "for_seconds": 0, "clear_for_seconds": 0, **scope, **overrides,
    }  # fmt: skip
    return AlertRule.objects.create(**values)


@dataclass
class Rounds:
    """A clock of its own, and what was told: (event, key, severity, sequence)."""

    now: dt.datetime = T0
    told: list[tuple[str, str, str, int]] = field(default_factory=list)

    def announce(self, alert: Alert, event: Event, *, now: dt.datetime) -> int:
        """Stand in for the outbox."""
        self.told.append((event.value.removeprefix("alert."), alert.key, alert.severity, alert.sequence))
        return 1

    def play(self, values: dict[AlertRule, Any], *, after: float = 5) -> list[tuple[str, str, str, int]]:
        """Evaluate once with a value for each rule, and return what was told.

        Shape: rule → a number for the rule as a whole; None, nothing to tell by; [] no subject; "broken", it could not
        be measured; or {subject: (number, tier)}.
        """
        self.now += dt.timedelta(seconds=after)
        rules = [AlertRule.objects.get(pk=rule.pk) for rule in values]
        readings = {rule.pk: self._readings(rule, value) for rule, value in values.items()}
        before = len(self.told)
        with transaction.atomic():
            engine.Round(rules=[rule for rule in rules if rule.enabled], readings=readings, now=self.now).apply()
        return self.told[before:]

    @staticmethod
    def _readings(rule: AlertRule, value: Any) -> list[Reading] | None:
        if value == "broken":
            return None
        if value == []:
            return []
        if not isinstance(value, dict):
            subject = f"tier{rule.tier}" if rule.tier else "all"
            value = {subject: (value, rule.tier)}
        return [
            Reading(subject=subject, value=number, words=f"{rule.metric} of {subject} is {number}", tier=tier)
            for subject, (number, tier) in value.items()
        ]


def open_alerts() -> dict[str, Alert]:
    """Return the alerts that are not resolved, by key."""
    return {alert.key: alert for alert in Alert.objects.exclude(state=Alert.State.RESOLVED)}
