"""What the database knows, as Prometheus metrics: names, labels, histograms.

Counters come from the rollups, so every process and replica says the same and a restart resets nothing. A type has all
of its counters from the moment that it exists: one that appeared with its first dead letter would hide it from `rate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dlq import watch
from jobsboard.metrics import probes
from queues import breakers, histogram, outcomes
from queues.breakers import Standing
from queues.outcomes import Counts
from queues.states import DEAD_REASONS, EXPIRED_REASONS

Pair = tuple[int, str]
_Key = TypeVar("_Key", bound=tuple[object, ...])
PREFIX: Final = "jobsboard_"
_PAIR: Final = ("tier", "type")
_HOUR: Final = 3600
_BREAKERS: Final = {"closed": 0, "half_open": 1, "open": 2}

_ROUND_SECONDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 10_800, 43_200,
    86_400, 604_800,
)  # fmt: skip
EDGES: Final = tuple(
    round(math.log(seconds / histogram.MIN_SECONDS) / math.log(histogram.GAMMA)) for seconds in _ROUND_SECONDS
)
"""The last bucket of ours in each of Prometheus's: edges are ours, near round numbers, so that counts are exact."""

_SUSPICIONS: Final = {
    "blind_attempt": "blind_attempts",
    "second_reference": "second_references",
    "contradiction": "contradictions",
    "confirmed_after_rejection": "confirmed_after_rejection",
}
"""Kind → the count of it."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that one scrape reads."""

    board: outcomes.Board
    totals: outcomes.Totals
    hour: outcomes.Flow
    oldest: Mapping[Pair, float]
    ages: Mapping[tuple[int, str, float], float]
    limbo: Mapping[str, int]
    processes: Iterable[probes.Process]
    sent: Sequence[outcomes.ProbeNow] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    """Failure groups by state."""
    plans: Mapping[str, int] = field(default_factory=dict)
    """Replay plans by state."""
    breakers: Sequence[Standing] = ()

    @property
    def pairs(self) -> list[Pair]:
        """Every (tier, type) that exists or has counts."""
        known = {(one.tier, one.name) for one in self.board.types.values()}
        return sorted(known | set(self.totals.counts))


_OPEN_NOT_RUNNING: Final = ("accepted", "retrying", "awaiting_confirmation")


def read() -> Snapshot:
    """Ask the database: a number of statements that depends on nothing, each of bounded cost."""
    board = outcomes.board()
    waiting = {
        pair: n
        for pair, states in board.counts.items()
        if (n := sum(states.get(state, 0) for state in _OPEN_NOT_RUNNING)) > 0
    }
    failures, plans = watch.states()
    open_pairs = {pair for pair, states in board.counts.items() if pair in waiting or states.get("processing", 0) > 0}
    return Snapshot(
        board=board,
        totals=outcomes.totals(),
        # In one piece: only its sums are said.
        hour=outcomes.flow(
            replace(outcomes.Span.of("1h", now=board.now, folded_at=board.folded_at), slot_seconds=_HOUR)
        ),
        oldest={
            pair: max((board.now - since).total_seconds(), 0.0)
            for pair, since in outcomes.oldest_open(open_pairs).items()
        },
        ages=probes.ages(waiting),
        limbo=probes.limbo(),
        processes=probes.processes(),
        sent=outcomes.probes(),
        failures=failures,
        plans=plans,
        breakers=breakers.standings(),
    )


def families(seen: Snapshot) -> Iterator[Metric]:
    """Make the metrics of a snapshot."""
    yield _gauge("up", "1: the database answered this scrape.", (), {(): 1})
    yield from _promise(seen)
    yield from _counters(seen)
    yield from _histograms(seen)
    yield from _now(seen)
    yield from _processes(seen)
    yield from _probes(seen)


def _promise(seen: Snapshot) -> Iterator[Metric]:
    yield _gauge(
        "promise_target_ratio",
        "Share of jobs that a tier promises to confirm in their window.",
        ("tier",),
        {(tier.number,): tier.target for tier in seen.board.tiers.values()},
    )
    yield _gauge(
        "promise_window_seconds",
        "Time from ready to confirmed that a job type's contract promises.",
        _PAIR,
        {(one.tier, one.name): one.window_seconds for one in seen.board.types.values()},
    )
    ratios = {pair: seen.hour.total(tier=pair[0], name=pair[1]).ratio for pair in seen.pairs}
    yield _gauge(
        "confirmed_in_window_ratio",
        "Of jobs that became ready in the last hour and whose window has passed: share confirmed in it.",
        _PAIR,
        {pair: ratio for pair, ratio in ratios.items() if ratio is not None},
    )
    yield _count(seen, "promise_due", "Jobs whose window has passed, without those cancelled in it.", "due")
    yield _count(seen, "promise_kept", "Jobs confirmed in their window, counted when it has passed.", "kept")


def _counters(seen: Snapshot) -> Iterator[Metric]:
    yield _count(seen, "jobs_accepted", "Jobs stored.", "accepted")
    yield _count(seen, "duplicates_suppressed", "Jobs sent again under a key that was taken.", "duplicates")
    yield _count(seen, "superseded_writes", "Writes of stale workers and late words that were refused.", "superseded")
    settled = CounterMetricFamily(
        f"{PREFIX}jobs_settled", "Jobs that reached a terminal state.", labels=(*_PAIR, "outcome", "reason")
    )
    attempts = CounterMetricFamily(
        f"{PREFIX}attempts",
        "Runs of jobs: all that have begun; of these the ones that failed, and that were lost with their worker.",
        labels=(*_PAIR, "outcome"),
    )
    suspected = CounterMetricFamily(
        f"{PREFIX}suspected_duplicate_effects",
        "Signs that one business action may have taken effect twice.",
        labels=(*_PAIR, "kind"),
    )
    for pair in seen.pairs:
        counts = _counts(seen, pair)
        dead = {reason.value: 0 for reason in DEAD_REASONS} | dict(seen.totals.times.dead.get(pair, {}))
        settled.add_metric([*_texts(pair), "confirmed", ""], counts.confirmed)
        for reason, n in dead.items():
            settled.add_metric([*_texts(pair), "dead", reason], n)
        settled.add_metric([*_texts(pair), "expired", EXPIRED_REASONS[0].value], counts.expired)
        settled.add_metric([*_texts(pair), "cancelled", ""], counts.cancelled)
        for outcome, n in (("begun", counts.runs), ("failed", counts.failed), ("lost", counts.lost)):
            attempts.add_metric([*_texts(pair), outcome], n)
        for kind, name in _SUSPICIONS.items():
            suspected.add_metric([*_texts(pair), kind], getattr(counts, name))
    yield from (settled, attempts, suspected)


def _histograms(seen: Snapshot) -> Iterator[Metric]:
    for name, measure, says in (
        ("outcome_lag_seconds", "lag", "From ready to confirmed."),
        ("job_wait_seconds", "wait", "From due to the begin of a run."),
        ("job_duration_seconds", "run", "Time of a run's body."),
    ):
        made = HistogramMetricFamily(
            f"{PREFIX}{name}", f"{says} Bucket counts are exact, the sum within 5 percent.", labels=_PAIR
        )
        for pair in seen.pairs:
            found = seen.totals.times.histograms.get(pair, {}).get(measure, {})
            total = sum(found.values())
            below = [(_le(edge), n) for edge, n in zip(EDGES, _below(found), strict=True)]
            seconds = sum(histogram.value_of(bucket) * n for bucket, n in found.items())
            made.add_metric(_texts(pair), [*below, ("+Inf", total)], seconds)
        yield made


def _below(found: Mapping[int, int]) -> Iterator[int]:
    """Return how many are at or below each edge."""
    buckets = iter([*sorted(found.items()), (EDGES[-1] + 1, 0)])
    bucket, n = next(buckets)
    total = 0
    for edge in EDGES:
        while bucket <= edge:
            total += n
            bucket, n = next(buckets)
        yield total


def _now(seen: Snapshot) -> Iterator[Metric]:
    board = seen.board
    depth: dict[tuple[int, str], int] = {(one.tier, one.pool): 0 for one in board.types.values()}
    for (tier, name), states in board.counts.items():
        queue = (tier, board.types[name].pool if name in board.types else "")
        depth[queue] = depth.get(queue, 0) + states.get("accepted", 0) + states.get("retrying", 0)
    yield _gauge("queue_depth", "Jobs that wait for a run, also those whose time is not come.", ("tier", "pool"), depth)
    yield _gauge(
        "queue_workers",
        "Live workers that take jobs of a queue and say of themselves that they are well.",
        ("tier", "pool"),
        {queue: _workers_of(seen, *queue) for queue in depth},
    )
    yield _gauge("oldest_job_age_seconds", "Since the oldest open job became ready.", _PAIR, seen.oldest)
    # A summary without count and sum: nothing is observed here, it is how old the jobs are now.
    ages = Metric(
        f"{PREFIX}job_age_seconds",
        "Since open jobs that do not run became ready, by quantile. Absent where it would take too much looking.",
        "summary",
    )
    for (tier, name, quantile), seconds in seen.ages.items():
        ages.add_sample(ages.name, {"tier": str(tier), "type": name, "quantile": str(quantile)}, seconds)
    yield ages
    yield _gauge(
        "dead_letters",
        "Dead letters that nobody has resolved.",
        _PAIR,
        {pair: board.counts.get(pair, {}).get("dead", 0) for pair in seen.pairs},
    )
    yield _gauge(
        "failure_groups",
        f"Failures that have unresolved dead letters; {watch.COUNT_AT_MOST} stands for that many or more.",
        ("state",),
        {(state,): n for state, n in seen.failures.items()},
    )
    yield _gauge(
        "replay_plans", "Replay plans that are not over.", ("state",), {(state,): n for state, n in seen.plans.items()}
    )
    yield _gauge(
        "limbo_jobs",
        f"Open jobs that nobody acted on {probes.LIMBO_SECONDS} s after they were due; "
        f"{probes.LIMBO_AT_MOST} stands for that many or more.",
        ("passed",),
        {(passed,): n for passed, n in seen.limbo.items()},
    )
    yield _gauge(
        "breaker_state",
        "The circuit breaker of a dependency: 0 closed, 1 half open, 2 open. Its jobs wait while it is not closed.",
        ("dependency",),
        {(one.name,): _BREAKERS[one.state] for one in seen.breakers},
    )
    age = max((board.now - board.folded_at).total_seconds(), 0.0)
    yield _gauge("rollup_age_seconds", "Since the numbers here were complete.", (), {(): age})


def _processes(seen: Snapshot) -> Iterator[Metric]:
    slots: dict[tuple[str, str], int] = {}
    memory: dict[tuple[str], int] = {}
    schedulers = 0
    for one in seen.processes:
        if one.kind == "scheduler":
            schedulers += 1
            continue
        queues = ",".join(one.queues)
        free = one.slots - one.busy
        found = {"busy": one.busy, "idle": 0 if one.troubled else free, "troubled": free if one.troubled else 0}
        for state, n in found.items():
            slots[(queues, state)] = slots.get((queues, state), 0) + n
        memory[(queues,)] = memory.get((queues,), 0) + one.memory_bytes
    yield _gauge(
        "worker_slots", "Jobs that live workers can run at once, by what the slots do.", ("queues", "state"), slots
    )
    yield _gauge("worker_memory_bytes", "Resident memory of live workers with their children.", ("queues",), memory)
    yield _gauge("schedulers", "Live schedulers.", (), {(): schedulers})
    yield _gauge("scheduler_up", "1 while a scheduler lives.", (), {(): int(schedulers > 0)})


def _probes(seen: Snapshot) -> Iterator[Metric]:
    # Of a type that is held nothing is known: what was true before is no reason to wake somebody up.
    known = [one for one in seen.sent if one.passes is not None and not one.paused]
    yield _gauge(
        "probe_success",
        "1: the last probe of the type was confirmed in its window; 0: it was not. Absent while the type is held.",
        _PAIR,
        {(one.tier, one.type): int(bool(one.passes)) for one in known},
    )
    yield _gauge(
        "probe_last_success_timestamp_seconds",
        "When a probe of the type was confirmed in its window last.",
        _PAIR,
        {(one.tier, one.type): one.last_ok_at.timestamp() for one in seen.sent if one.last_ok_at is not None},
    )
    yield _gauge(
        "probe_duration_seconds",
        "From ready to confirmed, of the last probe that was confirmed in its window.",
        _PAIR,
        {(one.tier, one.type): one.took_seconds for one in seen.sent if one.took_seconds is not None},
    )


def _workers_of(seen: Snapshot, tier: int, pool: str) -> int:
    queue = f"tier{tier}.{pool}" if pool else f"tier{tier}"
    return sum(queue in one.queues and not one.troubled for one in seen.processes if one.kind == "worker")


def _counts(seen: Snapshot, pair: Pair) -> Counts:
    return seen.totals.counts.get(pair, Counts())


def _count(seen: Snapshot, name: str, says: str, count: str) -> Metric:
    made = CounterMetricFamily(f"{PREFIX}{name}", says, labels=_PAIR)
    for pair in seen.pairs:
        made.add_metric(_texts(pair), getattr(_counts(seen, pair), count))
    return made


def _gauge(name: str, says: str, labels: tuple[str, ...], values: Mapping[_Key, float]) -> Metric:
    made = GaugeMetricFamily(f"{PREFIX}{name}", says, labels=labels)
    for key, value in values.items():
        made.add_metric(_texts(key), value)
    return made


def _texts(key: Iterable[object]) -> list[str]:
    return [str(one) for one in key]


def _le(edge: int) -> str:
    return f"{histogram.MIN_SECONDS * histogram.GAMMA**edge:.6g}"
