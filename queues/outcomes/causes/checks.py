"""What can hold back any job, of a type or one: switches, workers, scheduler, broker, its provider."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from queues.breakers import Standing
from queues.outcomes.causes.facts import (
    ERRORS_OF,
    FAILING_SHARE,
    HEALTHY_SHARE,
    RECENT_MINUTES,
    RUNS_LEAST,
    Hold,
    Recent,
    Situation,
)
from queues.outcomes.causes.found import PROVIDER, SHARE, STOP, Cause, Next, Verdict
from queues.outcomes.causes.words import clock, jobs, percent, when
from queues.outcomes.now import Pool, Processes
from queues.outcomes.ranges import STANDS_STILL

STARTS_STILL: Final = dt.timedelta(seconds=90)
"""A run in a minute that began so short ago says that workers hear of jobs."""
_STOP_SHARE: Final = 0.1
"""What stops less than this of the late jobs is no first cause."""
_PROVIDER_SHARE: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What every explanation looks at. `queue` is the Celery queue that the type's hints go to."""

    name: str
    queue: str
    situation: Situation
    broker: bool
    processes: Processes = field(default_factory=Processes)

    @property
    def now(self) -> dt.datetime:
        """The database's time."""
        return self.situation.now

    @property
    def pool(self) -> Pool | None:
        """The live workers of the queue."""
        found = self.processes.pools.get(self.queue)
        return found if found is not None and found.slots > 0 else None

    @property
    def stands_still(self) -> bool:
        """Nobody folds: what rests on rollups is not known."""
        return self.now - self.situation.as_of > STANDS_STILL

    @property
    def not_known(self) -> str:
        """Say why a number is not known."""
        return f"The numbers stand still since {clock(self.situation.as_of, self.now)}: no scheduler adds them up."


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a stop holds back: so many jobs, which are this share of those that are to be explained."""

    n: int
    share: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """A stop comes first, unless it stops next to nothing."""
        return STOP if self.share is None or self.share >= _STOP_SHARE else SHARE

    @property
    def words(self) -> str:
        """Say it after a sentence; of one job nothing needs to be said."""
        return "" if self.share is None else f" {jobs(self.n)} held back by it."


def paused(on: Machine, held: Held) -> Cause | None:
    """Return the pause of a type."""
    return _held_back(on, held, on.situation.paused, code="paused", next_step="resume")


def deferred(on: Machine, held: Held) -> Cause | None:
    """Return the deferral of a type: by a person, or by the scheduler while a tier above waits for workers."""
    return _held_back(on, held, on.situation.deferred, code="deferred", next_step="undefer")


def _held_back(on: Machine, held: Held, hold: Hold | None, *, code: str, next_step: str) -> Cause | None:
    if hold is None:
        return None
    return Cause(
        code=code,
        verdict=Verdict.CAUSE if held.n else Verdict.NOT_A_CAUSE,
        sentence=f"{on.name} is {code}: nothing of it is started",
        detail=_held_words(hold, on.now) + held.words,
        evidence={"by": hold.by, "reason": hold.reason, "until": hold.until, "jobs": held.n},
        since=hold.since,
        share=held.share,
        next=Next(kind=next_step, params={"type": on.name}),
        rank=held.rank,
    )


def disabled(on: Machine) -> Cause | None:
    """Return that new jobs are refused, which makes no open job late."""
    hold = on.situation.disabled
    if hold is None:
        return None
    return Cause(
        code="disabled",
        verdict=Verdict.NOT_A_CAUSE,
        sentence=f"{on.name} is disabled: new jobs are refused, those that are open go on",
        detail=_held_words(hold, on.now),
        evidence={"by": hold.by, "reason": hold.reason, "until": hold.until},
        since=hold.since,
        next=Next(kind="job_type", params={"type": on.name}),
    )


def _held_words(hold: Hold, now: dt.datetime) -> str:
    words = f"By {hold.by}" if hold.by else "It is not known by whom"
    words += f" since {when(hold.since, now)}" if hold.since else ""
    words += f", until {when(hold.until, now)}" if hold.until else ", until somebody turns it back"
    return f"{words}. {hold.reason.rstrip('.')}." if hold.reason else f"{words}."


def no_worker(on: Machine, held: Held) -> Cause:
    """Return whether a live worker consumes the queue of the type."""
    pool = on.pool
    if pool is not None:
        return Cause(
            code="no_worker",
            verdict=Verdict.NOT_A_CAUSE,
            sentence=f"Workers consume {on.queue}",
            detail=f"{min(pool.busy, pool.slots)} of {pool.slots} slots are busy.",
            evidence={"queue": on.queue, "slots": pool.slots, "busy": pool.busy, "processes": pool.processes},
        )
    others = sorted(on.processes.pools)
    seen = "There are live workers of other queues." if others else "No worker reports at all."
    return Cause(
        code="no_worker",
        verdict=Verdict.CAUSE if held.n else Verdict.NOT_A_CAUSE,
        sentence=f"No live worker consumes {on.queue}",
        detail=f"{seen} Jobs are kept, and run once a worker of this queue is there.{held.words}",
        evidence={"queue": on.queue, "slots": 0, "other_queues": others, "jobs": held.n},
        share=held.share,
        next=Next(kind="overview"),
        rank=held.rank,
    )


def scheduler_down(on: Machine, held: Held) -> Cause:
    """Return whether a scheduler lives; without one nothing that waits for a time moves."""
    seen = on.processes.scheduler_seen_at
    if on.processes.scheduler_alive:
        return Cause(
            code="scheduler_down",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="A scheduler is running",
            evidence={"seen_at": seen},
        )
    words = f"Last seen at {when(seen, on.now)}." if seen else "None was ever seen."
    return Cause(
        code="scheduler_down",
        verdict=Verdict.CAUSE if held.n else Verdict.NOT_A_CAUSE,
        sentence="No scheduler is running",
        detail=f"{words} Retries, checks, rescues and expiry wait for one, and so does a backlog.{held.words}",
        evidence={"seen_at": seen, "jobs": held.n},
        since=seen,
        share=held.share,
        next=Next(kind="overview"),
        rank=held.rank,
    )


def broker_unreachable(on: Machine, held: Held) -> Cause:
    """Return whether workers can be told of jobs.

    One call that was not answered in its 0.2 s may be this process's own haste: while runs begin, it is not known.
    """
    if on.broker:
        return Cause(
            code="broker_unreachable",
            verdict=Verdict.NOT_A_CAUSE,
            sentence="The broker answers",
            evidence={"answers": True},
        )
    started = on.situation.shared.started
    evidence = {"answers": False, "jobs": held.n, "started_at": started}
    if started is not None and on.now - started < STARTS_STILL:
        return Cause(
            code="broker_unreachable",
            verdict=Verdict.UNKNOWN,
            sentence="The broker did not answer at once",
            detail=f"Runs began all the same, in the minute of {clock(started, on.now)} for one.",
            evidence=evidence,
            next=Next(kind="overview"),
        )
    return Cause(
        code="broker_unreachable",
        verdict=Verdict.CAUSE if held.n else Verdict.NOT_A_CAUSE,
        sentence="The broker does not answer",
        detail=f"Jobs are accepted and kept; workers hear of them when it is back.{held.words}",
        evidence=evidence,
        share=held.share,
        next=Next(kind="overview"),
        rank=held.rank,
    )


def breaker(on: Machine, held: Held) -> Cause | None:
    """Return what the circuit breaker of its dependency holds; nothing while it is closed, or without one."""
    one = on.situation.breaker
    if one is None or one.state == "closed":
        return None
    evidence: dict[str, Any] = {
        "dependency": one.name, "state": one.state, "calls": one.calls, "failed": one.failed, "slow": one.slow,
        "ratio": one.ratio, "error_ratio": one.error_ratio, "window_seconds": one.window_seconds,
        "retry_at": one.retry_at, "trials_left": one.trials_left, "forced": bool(one.forced), "jobs": held.n,
    }  # fmt: skip
    return Cause(
        code="breaker",
        verdict=Verdict.CAUSE if held.n else Verdict.NOT_A_CAUSE,
        sentence=f"The circuit breaker of {one.name} {'is open' if one.state == 'open' else 'tries again'}",
        detail=_breaker_words(one, on.now) + held.words,
        evidence=evidence,
        since=one.since,
        share=held.share,
        next=Next(kind="dependency", params={"dependency": one.name}),
        rank=held.rank,
    )


def is_held(on: Machine) -> bool:
    """Tell whether a breaker that is not closed holds jobs of the type back."""
    return on.situation.breaker is not None and on.situation.breaker.state != "closed"


def _breaker_words(one: Standing, now: dt.datetime) -> str:
    parts = [f"{one.why.rstrip('.')}."] if one.why else []
    if one.forced:
        parts.append(f"Held until {when(one.forced_until, now)}." if one.forced_until else "Held until it is let go.")
    elif one.state == "half_open":
        parts.append(f"{max(one.trials_left, 0)} of {one.trial_jobs} trials have not begun; the others wait for them.")
    elif one.retry_at is not None and one.retry_at > now:
        parts.append(f"The next trials begin at {when(one.retry_at, now)}.")
    else:
        parts.append("The next trials are due.")
    return " ".join(parts)


STOPS: Final = (paused, deferred, breaker, no_worker, scheduler_down, broker_unreachable)
"""What stops jobs altogether, in the order in which it is said. Limits, which stop some jobs, are in `limits`."""


def stops(on: Machine, held: Held) -> list[Cause]:
    """Return what stops jobs, and what does not."""
    return [cause for check in STOPS if (cause := check(on, held)) is not None]


def provider_failing(
    on: Machine, *, share: float | None = None, retries_explain: bool = True, errors: Mapping[str, int] | None = None
) -> Cause:
    """Return whether what the type depends on fails, by the last minutes of all types that depend on it.

    `share`: what waiting for another attempt explains, and `retries_explain` whether that is the larger part.
    """
    found, dependency = on.situation.shared, on.situation.dependency
    errors = errors or {}
    evidence: dict[str, Any] = {
        "dependency": dependency or None, "types": list(found.types), "minutes": RECENT_MINUTES, "runs": found.runs,
        "failed": found.failed, "lost": found.lost, "failed_share": found.failed_share, "errors": dict(errors),
        "newest_error": next(iter(errors), None), "well_since": found.well_since,
    }  # fmt: skip
    judged = _basis(found, dependency)
    if on.situation.breaker is not None:
        judged = f"{judged} {_closed_words(on.situation.breaker)}".rstrip()
    whom = dependency or "What it calls"
    if on.stands_still:
        return Cause(
            code="provider_failing",
            verdict=Verdict.UNKNOWN,
            sentence=f"Whether {dependency or 'what it calls'} fails is not known",
            detail=on.not_known,
            evidence={**evidence, "as_of": on.situation.as_of},
        )
    verdict = judge(found, retries_explain=retries_explain)
    share_of = found.failed_share or 0.0
    counted = f"{percent(share_of)} of {jobs(_whole(found), what='run')}"
    if verdict == Verdict.CAUSE:
        said = f"{whom} fails: {counted} in the last {RECENT_MINUTES} min"
        if found.well_since:
            said = (
                f"{whom} failed {counted} in {RECENT_MINUTES} min; it is well since {clock(found.well_since, on.now)}"
            )
        return Cause(
            code="provider_failing",
            verdict=verdict,
            sentence=said,
            detail=" ".join(part for part in (_error_words(errors), judged) if part),
            evidence=evidence,
            since=found.failing_since,
            share=share,
            next=Next(kind="jobs", params={"type": on.name, "state": "retrying"}),
            rank=PROVIDER if share is None or share >= _PROVIDER_SHARE else SHARE,
        )
    if verdict == Verdict.UNKNOWN:
        few = f"Only {jobs(_whole(found), what='run')}" if _whole(found) else "No runs"
        said = f", {found.failed} of them failed" if found.failed else ""
        return Cause(
            code="provider_failing",
            verdict=verdict,
            sentence=f"Whether {dependency or 'what it calls'} fails is not known",
            detail=f"{few} in the last {RECENT_MINUTES} min{said}: too few to judge by. {judged}",
            evidence=evidence,
        )
    return Cause(
        code="provider_failing",
        verdict=verdict,
        sentence=f"{whom} does not fail" if share_of < HEALTHY_SHARE else f"{whom} fails too seldom to explain it",
        detail=f"{counted} failed in the last {RECENT_MINUTES} min. {judged}",
        evidence=evidence,
    )


def _closed_words(one: Standing) -> str:
    if one.state != "closed":
        return ""
    bad = one.failed + one.slow
    counted = f"{bad:,} of {jobs(one.calls, what='call')} in {one.window_seconds} s failed or were slow"
    return f"Its circuit breaker is closed: {counted if one.calls else f'no calls in {one.window_seconds} s'}."


def judge(found: Recent, *, retries_explain: bool) -> Verdict:
    """Judge runs: many that fail are a cause, few are one only where waiting to retry is what takes the time."""
    share, runs = found.failed_share, _whole(found)
    if share is None or runs < RUNS_LEAST:
        return Verdict.CAUSE if found.failed >= 2 and (share or 0.0) >= 0.5 else Verdict.UNKNOWN
    if share >= FAILING_SHARE or (share >= HEALTHY_SHARE and retries_explain):
        return Verdict.CAUSE
    return Verdict.NOT_A_CAUSE


def _whole(found: Recent) -> int:
    return max(found.runs, found.failed + found.lost)


def _basis(found: Recent, dependency: str) -> str:
    if not dependency:
        return "Judged by this type's own runs: its contract names no dependency."
    others = len(found.types) - 1
    if others < 1:
        return f"Judged by this type's runs; no other that depends on {dependency} ran."
    return f"Judged by the runs of {len(found.types)} types that depend on {dependency}."


def _error_words(errors: Mapping[str, int]) -> str:
    if not errors:
        return ""
    newest, n = next(iter(errors.items()))
    others = len(errors) - 1
    more = f", and {others} other error{'' if others == 1 else 's'}" if others else ""
    return f"Newest error {newest}, the last one of {jobs(n, most=ERRORS_OF, what='retrying job')}{more}."
