"""Metrics of dead letters, of the failures behind them, and of replay plans. Pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dlq.watch import News
from jobsboard.alerts.readings import Reading, covers, who, whole
from jobsboard.alerts.seen import Seen
from jobsboard.durations import duration
from jobsboard.models import AlertRule


def dead_inflow(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """New dead letters in the stretch, of one reason or of all, apart from those of failures that somebody ignores."""
    dead = {pair: dict(found) for pair, found in seen.times(rule.over_seconds).dead.items() if covers(rule, *pair)}
    aside = 0
    for one in seen.ignored(rule.over_seconds):
        found = dead.get((one.tier, one.type), {})
        # Never more than died: a type that moved between tiers has deaths in both.
        n = min(one.died, found.get(one.reason, 0))
        if n:
            found[one.reason] -= n
            aside += n if rule.reason in ("", one.reason) else 0
    by_reason: dict[str, int] = {}
    by_type: dict[str, int] = {}
    for (_, name), found in dead.items():
        for reason, n in found.items():
            if n and rule.reason in ("", reason):
                by_reason[reason] = by_reason.get(reason, 0) + n
                by_type[name] = by_type.get(name, 0) + n
    if not by_reason:
        return whole(rule, 0, "")
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(by_reason.items(), key=lambda one: -one[1])[:3])
    words = (
        f"{who(rule)}: {sum(by_reason.values()):,} new dead letters in {duration(rule.over_seconds)} ({reasons}); "
        f"most of them {max(by_type, key=lambda one: by_type[one])}{_ignored(aside)}"
    )
    return whole(rule, sum(by_reason.values()), words)


def dead_open(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Dead letters that nobody has resolved, apart from those of failures that somebody ignores."""
    n = seen.board.count("dead", tier=rule.tier, name=rule.job_type or None)
    by_pair: dict[tuple[int, str], int] = {}
    for one in seen.ignored() if n else ():
        if covers(rule, one.tier, one.type):
            by_pair[(one.tier, one.type)] = by_pair.get((one.tier, one.type), 0) + one.open
    # Never more than there are: a type that moved between tiers has dead letters in both.
    aside = sum(min(found, seen.board.count("dead", tier=tier, name=name)) for (tier, name), found in by_pair.items())
    left = n - aside
    words = f"{who(rule)}: {left:,} dead letter{' waits' if left == 1 else 's wait'} for a decision"
    return whole(rule, left, words + _ignored(aside))


def _ignored(n: int) -> str:
    return f"; {n:,} more {'is' if n == 1 else 'are'} of failures that somebody ignores" if n else ""


def new(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Failures that killed a job for the first time in the stretch."""
    since = seen.at - timedelta(seconds=rule.over_seconds)
    found = [one for one in _news(rule, seen) if _within(one.first_at, since)]
    n = len(found)
    words = f"{n:,} failure{'' if n == 1 else 's'} that nobody has seen before, in {duration(rule.over_seconds)}"
    return whole(rule, n, f"{who(rule)}: {words}; {_such_as(found)}" if n else "")


def regressed(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Failures that came back in the stretch after they had been resolved."""
    since = seen.at - timedelta(seconds=rule.over_seconds)
    found = [one for one in _news(rule, seen) if one.regressed_at is not None and one.regressed_at > since]
    n = len(found)
    words = f"{n:,} failure{'' if n == 1 else 's'} came back after being resolved, in {duration(rule.over_seconds)}"
    return whole(rule, n, f"{who(rule)}: {words}; {_such_as(found)}" if n else "")


def plans_stopped(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Replay plans that their stop rule holds until somebody decides."""
    found = seen.stopped
    words = ""
    if found.n:
        more = f" and {found.n - 1:,} more" if found.n > 1 else ""
        words = f"A {found.action} plan{more} stopped by {'its rule' if found.n == 1 else 'their rules'}: {found.why}"
    return [Reading(subject="all", value=found.n, words=words)]


def _news(rule: AlertRule, seen: Seen) -> list[News]:
    return [one for one in seen.failures if covers(rule, one.tier, one.type)]


def _within(first_at: datetime, since: datetime) -> bool:
    """Say whether it was first seen in the stretch; of a time only its minute is kept, and the whole minute counts."""
    return first_at > since - timedelta(minutes=1)


def _such_as(found: Sequence[News]) -> str:
    one = found[0]
    what = one.error_class or one.reason.replace("_", " ")
    return f"{'it is' if len(found) == 1 else 'the last one is'} {what} in {one.type}"
