"""A reading of a metric for one subject, and what a rule is about in words."""

from __future__ import annotations

from dataclasses import dataclass

from jobsboard.models import AlertRule


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The value of a metric for one subject; None where there is nothing to tell by."""

    subject: str
    value: float | None
    words: str
    tier: int | None = None
    job_type: str = ""


def subject_of(rule: AlertRule) -> str:
    """Name what a rule looks at as a whole."""
    if rule.scope == AlertRule.Scope.TIER:
        return f"tier{rule.tier}"
    return f"type:{rule.job_type}" if rule.scope == AlertRule.Scope.TYPE else "all"


def whole(rule: AlertRule, value: float | None, words: str) -> list[Reading]:
    """Make the one reading of a rule that looks at its scope as a whole."""
    return [Reading(subject=subject_of(rule), value=value, words=words, tier=rule.tier, job_type=rule.job_type)]


def covers(rule: AlertRule, tier: int, name: str) -> bool:
    """Say whether a type of a tier is in the scope of a rule."""
    return rule.tier in (None, tier) and rule.job_type in ("", name)


def who(rule: AlertRule) -> str:
    """Name the scope of a rule at the beginning of a sentence."""
    if rule.scope == AlertRule.Scope.TIER:
        return f"Tier {rule.tier}"
    return rule.job_type if rule.scope == AlertRule.Scope.TYPE else "All types"
