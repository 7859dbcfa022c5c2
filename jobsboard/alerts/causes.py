"""Which alert a finding belongs to: one cause is one alert. Pure functions.

What goes wrong with the outcomes of a tier is one alert, however many rules see it. A queue without workers explains
what goes wrong with its tier afterwards. What stands until somebody decides has an alert of its own, which does not
open beside the alert of what caused it: nobody is woken twice, and an old dead letter hides no new failure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

from jobsboard.models import AlertRule, Metric

KEY_MOST: Final = 128
"""Characters of an alert's key."""
WORKERS: Final = "workers"
_OF_TIER: Final = frozenset(
    {
        Metric.LAG, Metric.BURN_RATE, Metric.LATE_RATIO, Metric.DEAD_INFLOW, Metric.BACKLOG, Metric.OLDEST_OPEN,
        Metric.NOT_CONSUMING, Metric.PROBE_FAILED, Metric.SUSPECTED_DUPLICATES, Metric.NEW_FAILURES,
        Metric.REGRESSED_FAILURES,
    }
)  # fmt: skip
STANDING: Final = frozenset({Metric.DEAD_OPEN})
"""Metrics of what stays until somebody decides."""

ORDER: Final = (
    Metric.NO_WORKER, Metric.NOT_CONSUMING, Metric.BURN_RATE, Metric.LATE_RATIO, Metric.PROBE_FAILED,
    Metric.DEAD_INFLOW, Metric.REGRESSED_FAILURES, Metric.NEW_FAILURES, Metric.LAG, Metric.BACKLOG, Metric.OLDEST_OPEN,
    Metric.SUSPECTED_DUPLICATES,
)  # fmt: skip
"""What says most comes first in the title of an alert."""


def key_of(rule: AlertRule, *, subject: str, tier: int | None) -> str:
    """Return the key of the alert that a finding would open by itself."""
    metric = Metric(rule.metric)
    if metric is Metric.NO_WORKER:
        return WORKERS
    if rule.scope == AlertRule.Scope.TYPE:
        return f"type:{rule.job_type}"
    if metric in STANDING:
        return f"{metric.value}:{subject}"
    if metric in _OF_TIER and tier is not None:
        return f"tier{tier}"
    key = ":".join(part for part in (metric.value, rule.reason, subject) if part)
    return key if len(key) <= KEY_MOST else f"{key[: KEY_MOST - 17]}:{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def route(rule: AlertRule, *, subject: str, tier: int | None, open_tiers: Mapping[str, Collection[int]]) -> str | None:
    """Return the key of the alert to join or to open; None to wait for the end of another one.

    Shape: open_tiers: key of an open alert → the tiers that its findings are about.
    """
    key = key_of(rule, subject=subject, tier=tier)
    if key in open_tiers:
        return key
    explained = tier is not None and (tier in open_tiers.get(WORKERS, ()))
    if Metric(rule.metric) in STANDING:
        return None if explained or f"tier{tier}" in open_tiers else key
    return WORKERS if explained and key == f"tier{tier}" else key
