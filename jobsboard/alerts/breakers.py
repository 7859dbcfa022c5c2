"""The metric of circuit breakers. Pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Sequence

from jobsboard.alerts.readings import Reading, covers
from jobsboard.alerts.seen import Seen
from jobsboard.models import AlertRule
from queues.breakers import Standing
from queues.models import Breaker
from queues.redaction import redact_text
from queues.states import WAITING


def holding(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Whether the breaker of each dependency that a type in the scope names holds jobs back: 1 while it is not closed.

    One that tries again is not well yet, so a dependency that stays down is one alert. What a person holds open is
    known to that person.
    """
    return [
        _reading(rule, one, names, seen)
        for one in seen.breakers
        if (names := [name for name in one.types if _covered(rule, name, seen)])
    ]


def _covered(rule: AlertRule, name: str, seen: Seen) -> bool:
    known = seen.board.types.get(name)
    return known is not None and covers(rule, known.tier, name)


def _reading(rule: AlertRule, one: Standing, names: Sequence[str], seen: Seen) -> Reading:
    held = sum(seen.board.count(*WAITING, name=name) for name in names)
    state = "is open" if one.state == Breaker.OPEN else "tries again"
    waits = f"{held:,} job{' waits' if held == 1 else 's wait'}"
    return Reading(
        subject=f"dependency:{one.name}",
        value=int(one.state != Breaker.CLOSED and not one.forced),
        words=f"The circuit breaker of {one.name} {state}: {waits}. {redact_text(one.why)}"[:300].rstrip(),
        tier=min(seen.board.types[name].tier for name in names),
        job_type=rule.job_type,
    )
