"""Circuit breakers: how a dependency stands, what it did, and whether its breaker has to change.

Judging is pure. Nothing here writes: changes are `breaker_actions`', claims hold jobs back by themselves, and what a
run tells of its dependency is `runtime.calls`'.
Source: M. Nygard, Release It!, the circuit breaker; trials are counted in the database, so that any number of workers
together let exactly as many through as the settings say.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection

from queues.models import Breaker


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One dependency, now. `calls`, `failed` and `slow` are of its window, as far as folded, without trials.

    `retry_at`: when an open breaker lets trials through, or a half open one new ones, since the others told nothing.
    `forced`: a person holds it in that state; "" is not forced.
    """

    name: str
    description: str
    state: str
    since: dt.datetime
    why: str
    retry_at: dt.datetime | None
    forced: str
    forced_by: str
    forced_reason: str
    forced_until: dt.datetime | None
    calls: int
    failed: int
    slow: int
    error_ratio: float
    minimum_calls: int
    window_seconds: int
    reset_seconds: int
    slow_seconds: float
    timeout_seconds: float
    trial_jobs: int
    trials_left: int
    types: tuple[str, ...]
    """Job types that name it now, sorted."""

    @property
    def ratio(self) -> float | None:
        """The share of calls that failed or were slow; None without calls."""
        return (self.failed + self.slow) / self.calls if self.calls else None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a breaker is judged by. The trials are those of the half open time that it is in."""

    standing: Standing
    trials_ok: int
    trials_failed: int
    now: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a breaker has to become. Units: `retry_in` in seconds from now."""

    became: str
    why: str
    retry_in: float | None = None
    trials: int = 0


@dataclass(frozen=True, kw_only=True)
class Lend:
    """New trials of a half open breaker: now, or when those that were lent told nothing for `retry_in` seconds."""

    trials: int = 0
    retry_in: float | None = None


def judge(reading: Reading) -> Change | Lend | None:
    """Say what a breaker has to do now; None: nothing. A forced one does nothing by itself."""
    if reading.standing.forced:
        return None
    if reading.standing.state == Breaker.CLOSED:
        return _judge_closed(reading.standing)
    if reading.standing.state == Breaker.OPEN:
        return _judge_open(reading.standing, now=reading.now)
    return _judge_half_open(reading)


def _judge_closed(one: Standing) -> Change | None:
    if one.calls < one.minimum_calls or one.ratio is None or one.ratio < one.error_ratio:
        return None
    bad = f"{one.failed} failed" + (f" and {one.slow} were slow" if one.slow else "")
    why = f"Of {one.calls} calls in {one.window_seconds} s {bad}; the limit is {one.error_ratio * 100:g} %."
    return Change(became=Breaker.OPEN.value, why=why, retry_in=one.reset_seconds)


def _judge_open(one: Standing, *, now: dt.datetime) -> Change | None:
    if one.retry_at is not None and one.retry_at > now:
        return None
    trials = f"{one.trial_jobs} jobs as trials" if one.trial_jobs > 1 else "one job as a trial"
    return Change(became=Breaker.HALF_OPEN.value, why=f"It lets {trials} through.", trials=one.trial_jobs)


def _judge_half_open(reading: Reading) -> Change | Lend | None:
    one = reading.standing
    if reading.trials_failed:
        return Change(became=Breaker.OPEN.value, why="A trial failed or was slow.", retry_in=one.reset_seconds)
    if reading.trials_ok >= one.trial_jobs:
        trials = f"All {one.trial_jobs} trials" if one.trial_jobs > 1 else "The trial"
        return Change(became=Breaker.CLOSED.value, why=f"{trials} went well.")
    if one.trials_left > 0:
        return None
    if one.retry_at is None:
        return Lend(retry_in=one.reset_seconds)
    return Lend(trials=one.trial_jobs - reading.trials_ok) if one.retry_at <= reading.now else None


# After it closed, only calls since then count: those before told of the outage, and the second in which it closed may
# hold some of them. Trials are counted apart, those of another half open time as calls (`lifecycle.settle`): their
# first second counts. Nothing counts from a future that a clock came back from.
_READ: Final = """
SELECT d.name, d.description, d.state, d.since, d.why, d.retry_at, d.forced, d.forced_by, d.forced_reason,
  d.forced_until, coalesce(w.calls, 0), coalesce(w.failed, 0), coalesce(w.slow, 0), d.error_ratio, d.minimum_calls,
  d.window_seconds, d.reset_seconds, d.slow_seconds, d.timeout_seconds, d.trial_jobs, d.trials_left,
  ARRAY(SELECT c.name FROM queues_jobtype c WHERE c.dependency = d.name ORDER BY c.name),
  coalesce(t.ok, 0), coalesce(t.failed, 0), jobs_now()
FROM queues_dependency d
LEFT JOIN LATERAL (
  SELECT sum(c.ok + c.failed + c.slow) AS calls, sum(c.failed) AS failed, sum(c.slow) AS slow
  FROM queues_dependencycalls c WHERE c.dependency = d.name
    AND c.at > jobs_now() - make_interval(secs => d.window_seconds) AND c.at <= jobs_now()
    AND (d.state <> 'closed' OR c.at >= d.since)
) AS w ON true
LEFT JOIN LATERAL (
  SELECT sum(c.trials_ok) AS ok, sum(c.trials_failed) AS failed FROM queues_dependencycalls c
  WHERE c.dependency = d.name AND d.state = 'half_open' AND c.at >= date_trunc('second', d.since)
    AND c.at <= jobs_now()
) AS t ON true
WHERE %(name)s::text IS NULL OR d.name = %(name)s ORDER BY d.name
"""


def readings(*, name: str | None = None) -> list[Reading]:
    """Return all dependencies, or the one of this name, as they are judged."""
    with connection.cursor() as cursor:
        cursor.execute(_READ, {"name": name})
        return [_reading(row) for row in cursor.fetchall()]


def _reading(row: Sequence[Any]) -> Reading:
    *values, types, trials_ok, trials_failed, now = row
    names = [name for name in Standing.__dataclass_fields__ if name != "types"]
    standing = Standing(**dict(zip(names, values, strict=True)), types=tuple(types))
    return Reading(standing=standing, trials_ok=trials_ok, trials_failed=trials_failed, now=now)


def standings() -> list[Standing]:
    """Return every dependency as it stands, by name, in one statement."""
    return [reading.standing for reading in readings()]


def standing(name: str) -> Standing | None:
    """Return one dependency as it stands."""
    found = readings(name=name)
    return found[0].standing if found else None
