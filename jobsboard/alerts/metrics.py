"""What each metric of a rule measures: readings of subjects, with a sentence. Pure functions of what was seen.

Not here: those of dead letters and plans (`failures`), of circuit breakers (`breakers`).
Source of the burn rate over two stretches: Google's SRE workbook, chapter 5, "Alerting on SLOs".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from jobsboard.alerts import breakers, failures
from jobsboard.alerts.readings import Reading, covers, who, whole
from jobsboard.alerts.seen import Pair, Seen
from jobsboard.durations import duration
from jobsboard.models import AlertRule, Metric
from queues.outcomes.watch import LOOK_AT_MOST

LONG: Final = 12
"""A burn rate counts only if it is also that high over a stretch so many times longer: what was is not."""
NEVER_SEEN: Final = 3600.0
"""Seconds since a queue had a worker, where none is remembered: processes are forgotten after an hour."""
BEGUN_WITHIN: Final = 120
MEGABYTE: Final = 1_000_000

__all__ = ["NEVER_SEEN", "Reading", "read"]


def read(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Measure what a rule asks for."""
    return _METRICS[Metric(rule.metric)](rule, seen)


def _pairs(rule: AlertRule, seen: Seen) -> list[Pair]:
    """Return the (tier, type) pairs in the scope that exist now."""
    return [(one.tier, one.name) for one in seen.board.types.values() if covers(rule, one.tier, one.name)]


def _lag(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """p95 of the lag of the type that is worst off, as a multiple of its window."""
    times, worst = seen.times(rule.over_seconds), None
    for tier, name in _pairs(rule, seen):
        histogram = times.merged(("lag",), tier=tier, name=name)
        p95 = times.of("lag", tier=tier, name=name).p95
        if p95 is None or sum(histogram.values()) < max(rule.least_events, 1):
            continue
        found = (p95 / seen.board.types[name].window_seconds, p95, name)
        worst = max(worst, found) if worst else found
    if worst is None:
        return whole(rule, None, "")
    share, p95, name = worst
    window = duration(seen.board.types[name].window_seconds)
    return whole(rule, share, f"{name}: p95 of the lag is {duration(p95)}, its window {window}")


def _burn_rate(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """How many times faster than its promise allows a scope misses windows, over both stretches."""
    short = _burning(rule, seen, rule.over_seconds)
    long = _burning(rule, seen, min(rule.over_seconds * LONG, 86_400))
    if short is None or long is None:
        return whole(rule, None, "")
    rate, missed, due = short
    words = (
        f"{who(rule)} is outside its promise: {due - missed:,} of {due:,} confirmed in their window in "
        f"{duration(rule.over_seconds)}, misses at {rate:.3g} times what is promised"
    )
    return whole(rule, min(rate, long[0]), words)


def _burning(rule: AlertRule, seen: Seen, seconds: int) -> tuple[float, int, int] | None:
    judged = seen.judged(seconds, tier=rule.tier, name=rule.job_type or None)
    due = sum(one.due for one in judged.values())
    missed = sum(one.due - one.kept for one in judged.values())
    # A promise of everything leaves no budget; one job in a million then stands for it.
    allowed = sum(one.due * max(1 - seen.board.types[name].target, 1e-6) for (_, name), one in judged.items())
    if due < max(rule.least_events, 1) or allowed <= 0:
        return None
    return missed / allowed, missed, due


def _late_ratio(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Of what ended in the stretch or is open past its window: what was late, expired, or is open."""
    settled = late = overdue = 0
    worst: dict[str, int] = {}
    for tier, name in _pairs(rule, seen):
        total = seen.flow(rule.over_seconds).total(tier=tier, name=name)
        known = seen.waiting.get((tier, name))
        # What somebody paused, or what is deferred, waits because of that, and the promise tells of it.
        of_type = known.overdue if known and not seen.board.types[name].on_hold else 0
        settled += total.settled
        late += total.late + total.expired
        overdue += of_type
        worst[name] = total.late + total.expired + of_type
    n = settled + overdue
    if n < max(rule.least_events, 1):
        return whole(rule, None, "")
    name = max(worst, key=lambda one: worst[one])
    more = " or more" if overdue >= LOOK_AT_MOST else ""
    words = (
        f"{who(rule)} is late: {overdue:,}{more} open past their window, {late:,} of {settled:,} that ended in "
        f"{duration(rule.over_seconds)} were late or expired; most of it {name}"
    )
    return whole(rule, (late + overdue) / n, words)


def _backlog(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """How full each tier is. Of one type: against its tier's limit."""
    found = []
    for tier, limit in seen.ground.backlog_limits.items():
        if rule.tier not in (None, tier) or (rule.job_type and _tier_of(rule, seen) != tier):
            continue
        name = rule.job_type or None
        n = seen.board.count("accepted", "retrying", tier=tier, name=name)
        words = (
            f"{rule.job_type or f'Tier {tier}'}: {n:,} jobs wait, of at most {limit:,}; beyond that it takes no more"
        )
        subject = f"type:{rule.job_type}" if rule.job_type else f"tier{tier}"
        value = n / limit if limit else 1.0
        found.append(Reading(subject=subject, value=value, words=words, tier=tier, job_type=rule.job_type))
    return found


def _tier_of(rule: AlertRule, seen: Seen) -> int | None:
    known = seen.board.types.get(rule.job_type)
    return known.tier if known else None


def _oldest_open(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """The age of the oldest open job of the type that is worst off, as a multiple of its window."""
    worst = None
    for (tier, name), since in seen.oldest.items():
        if name not in seen.board.types or seen.board.types[name].on_hold or not covers(rule, tier, name):
            continue
        age = (seen.at - since).total_seconds()
        found = (age / seen.board.types[name].window_seconds, age, name)
        worst = max(worst, found) if worst else found
    if worst is None:
        return whole(rule, 0, "")
    share, age, name = worst
    window = duration(seen.board.types[name].window_seconds)
    return whole(
        rule, max(share, 0.0), f"{name}: its oldest open job is ready for {duration(max(age, 0))}, window {window}"
    )


def _no_worker(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Since when no worker that is well takes jobs of a queue, of each queue that jobs went to or wait in."""
    found = []
    for queue, (tier, names) in _used_queues(rule, seen).items():
        known = seen.queues.get(queue)
        since = known.seen_at if known else None
        value = (seen.at - since).total_seconds() if since else NEVER_SEEN
        n = sum(seen.board.count("accepted", "retrying", tier=tier, name=name) for name in names)
        said = f", for {duration(value)}" if since else ""
        words = f"No worker takes jobs of {queue}{said}; {n:,} job{' waits' if n == 1 else 's wait'}"
        found.append(Reading(subject=f"queue:{queue}", value=max(value, 0.0), words=words, tier=tier))
    return found


def _used_queues(rule: AlertRule, seen: Seen) -> dict[str, tuple[int, list[str]]]:
    """Return the queues of types that are in use: a type without a job so far needs no worker."""
    found: dict[str, tuple[int, list[str]]] = {}
    waiting = {name for (_, name), states in seen.board.counts.items() if states.get("accepted")}
    for tier, name in _pairs(rule, seen):
        if seen.board.types[name].enabled and (name in seen.ground.used or name in waiting):
            found.setdefault(seen.queue_of(name), (tier, []))[1].append(name)
    return found


def _not_consuming(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """How long a due job waits in a queue that has free workers and has begun nothing of late."""
    found = []
    for queue, (tier, names) in _used_queues(rule, seen).items():
        known = seen.queues.get(queue)
        due = [
            waiting.due_since
            for name in names
            if not seen.board.types[name].on_hold
            and (waiting := seen.waiting.get((tier, name)))
            and waiting.due_since is not None
        ]
        value = 0.0
        if due and known and known.free and not _begun(seen, queue):
            value = (seen.at - min(due)).total_seconds()
        words = (
            f"{queue} does not consume: {known.free if known else 0} slots are free, a job is due for {duration(value)}"
        )
        found.append(Reading(subject=f"queue:{queue}", value=value, words=words, tier=tier))
    return found


def _begun(seen: Seen, queue: str) -> int:
    """Count the runs that began in a queue of late."""
    flow = seen.flow(600)
    begun = flow.span.slots
    return sum(
        one.runs
        for (_, name), slots in flow.pairs.items()
        if name in seen.board.types and seen.queue_of(name) == queue
        for index, one in slots.items()
        if 0 <= index < len(begun) and (seen.at - begun[index]).total_seconds() <= BEGUN_WITHIN
    )


def _probe_failed(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    return [
        Reading(
            subject=f"probe:{one.type}",
            value=one.failures,
            words=f"The probe of {one.type} fails: {one.reason or 'not confirmed'}"
            + (f", {one.failures} times in a row" if one.failures > 1 else ""),
            tier=one.tier,
            job_type=one.type,
        )
        for one in seen.probes
        if covers(rule, one.tier, one.type) and not one.paused
    ]


def _limbo(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    n = sum(seen.limbo.values())
    listed = ", ".join(f"{n:,} past their {passed.replace('_', ' ')}" for passed, n in seen.limbo.items() if n)
    return [Reading(subject="all", value=n, words=f"Jobs that nobody acts on: {listed}" if n else "")]


def _worker_memory(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """The worker that uses most, of each set of queues."""
    most: dict[str, int] = {}
    for one in seen.processes:
        queues = ",".join(one.queues)
        if one.kind == "worker" and (
            rule.tier is None or any(q.split(".")[0] == f"tier{rule.tier}" for q in one.queues)
        ):
            most[queues] = max(most.get(queues, 0), one.memory_bytes)
    return [
        Reading(
            subject=f"workers:{queues}"[:128],
            value=size / MEGABYTE,
            words=f"A worker of {queues} uses {size / MEGABYTE:,.0f} MB with its children",
        )
        for queues, size in most.items()
    ]


def _suspected(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    by_type = {
        name: seen.flow(rule.over_seconds).total(tier=tier, name=name).suspected for tier, name in _pairs(rule, seen)
    }
    n = sum(by_type.values())
    if not n:
        return whole(rule, 0, "")
    worst = max(by_type, key=lambda one: by_type[one])
    words = f"{who(rule)}: {n:,} signs of duplicate effects in {duration(rule.over_seconds)}; most of them {worst}"
    return whole(rule, n, words)


def _rollup_age(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    age = (seen.at - seen.board.folded_at).total_seconds()
    return [Reading(subject="all", value=max(age, 0.0), words=f"The numbers stand still for {duration(max(age, 0))}")]


def _partitions(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    days = seen.ground.partition_days
    words = (
        "There is no place for new jobs"
        if days is None
        else f"There is a place for jobs of {max(days, 0)} more days only"
    )
    return [Reading(subject="all", value=-1 if days is None else days, words=words)]


def _undelivered(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    return [
        Reading(
            subject=f"endpoint:{one.pk}",
            value=one.failures if one.enabled else 0,
            words=f"Alerts do not reach {one.name}: {one.failures} tries failed in a row, {one.last_error}"[:300],
        )
        for one in seen.endpoints
    ]


def _unmeasured(rule: AlertRule, seen: Seen) -> Sequence[Reading]:
    """Rules that the round before could not measure; this asks nothing but them."""
    n = len(seen.troubled)
    words = (
        f"{n} alert rule{' cannot' if n == 1 else 's cannot'} be measured: {', '.join(seen.troubled[:3])}" if n else ""
    )
    return [Reading(subject="all", value=n, words=words)]


_METRICS: Final[Mapping[Metric, Callable[[AlertRule, Seen], Sequence[Reading]]]] = {
    Metric.LAG: _lag,
    Metric.BURN_RATE: _burn_rate,
    Metric.LATE_RATIO: _late_ratio,
    Metric.DEAD_INFLOW: failures.dead_inflow,
    Metric.DEAD_OPEN: failures.dead_open,
    Metric.NEW_FAILURES: failures.new,
    Metric.REGRESSED_FAILURES: failures.regressed,
    Metric.REPLAY_PLANS_STOPPED: failures.plans_stopped,
    Metric.BACKLOG: _backlog,
    Metric.OLDEST_OPEN: _oldest_open,
    Metric.NO_WORKER: _no_worker,
    Metric.NOT_CONSUMING: _not_consuming,
    Metric.BREAKER_OPEN: breakers.holding,
    Metric.PROBE_FAILED: _probe_failed,
    Metric.LIMBO: _limbo,
    Metric.WORKER_MEMORY: _worker_memory,
    Metric.SUSPECTED_DUPLICATES: _suspected,
    Metric.ROLLUP_AGE: _rollup_age,
    Metric.PARTITIONS_AHEAD: _partitions,
    Metric.UNDELIVERED: _undelivered,
    Metric.UNMEASURED: _unmeasured,
}
