"""Tiers and job types over a range: the numbers of the overview and of the list of types, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from queues import outcomes
from queues.outcomes import Board, Counts, Flow, Percentiles, Processes, Span, Times
from queues.states import OPEN, WAITING


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is said of a tier or a type alike."""

    target: float
    total: Counts
    lag: Percentiles
    spark: Sequence[float | None]
    since: datetime | None
    """Since when the ratio is below its target."""
    oldest_seconds: float | None

    @property
    def ratio(self) -> float | None:
        """The share confirmed in the window."""
        return self.total.ratio

    @property
    def gap(self) -> float:
        """How far the ratio is from its target; below it negative, 0 without data."""
        return 0.0 if self.ratio is None else self.ratio - self.target

    @property
    def breach(self) -> bool:
        """The promise is not kept."""
        return self.gap < 0


@dataclass(frozen=True, kw_only=True)
class TypeLine(Line):
    """One job type. `dead` are unresolved dead letters, `total.dead` those that died in the range."""

    name: str
    tier: int
    window_seconds: int
    paused: bool
    deferred: bool
    enabled: bool
    mix: Sequence[tuple[str, int]]
    open: int
    dead: int
    in_per_minute: float
    dependency: str
    breaker: str

    @property
    def overdue(self) -> bool:
        """The oldest open job is past its window."""
        return self.oldest_seconds is not None and self.oldest_seconds > self.window_seconds

    @property
    def rank(self) -> tuple[bool, float, str]:
        """Worst first; without data last."""
        return (self.ratio is None, self.gap, self.name)


@dataclass(frozen=True, kw_only=True)
class TierLine(Line):
    """One tier."""

    number: int
    name: str
    waiting: int
    slots: int
    busy: int


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Everything that was read for a range."""

    board: Board
    span: Span
    flow: Flow
    times: Times
    oldest: dict[tuple[int, str], datetime]


def read(board: Board, span: Span) -> Numbers:
    """Read a span: three statements."""
    with_open = [pair for pair, found in board.counts.items() if any(found.get(state) for state in OPEN)]
    return Numbers(
        board=board,
        span=span,
        flow=outcomes.flow(span),
        times=outcomes.times(span, names=board.types, measures=("lag", "dead")),
        oldest=outcomes.oldest_open(with_open),
    )


def type_lines(numbers: Numbers) -> list[TypeLine]:
    """Return the types, worst first."""
    return sorted((_type_line(numbers, name) for name in numbers.board.types), key=lambda line: line.rank)


def _type_line(numbers: Numbers, name: str) -> TypeLine:
    board, span = numbers.board, numbers.span
    known = board.types[name]
    series = numbers.flow.series(name=name)
    total = outcomes.add(series)
    mix = [(state.value, board.count(state, name=name)) for state in OPEN]
    return TypeLine(
        name=name,
        tier=known.tier,
        target=known.target,
        window_seconds=known.window_seconds,
        paused=known.paused,
        deferred=known.deferred,
        enabled=known.enabled,
        total=total,
        lag=numbers.times.of("lag", name=name),
        spark=[counts.ratio for counts in series],
        since=outcomes.below_since(series, known.target, span),
        oldest_seconds=_oldest(numbers, name=name),
        mix=mix,
        open=sum(n for _, n in mix),
        dead=board.count("dead", name=name),
        dependency=known.dependency,
        breaker=known.breaker,
        in_per_minute=total.accepted / ((span.until - span.since).total_seconds() / 60 or 1),
    )


def tier_lines(numbers: Numbers, processes: Processes) -> list[TierLine]:
    """Return the three tiers."""
    lines = []
    for tier in numbers.board.tiers.values():
        series = numbers.flow.series(tier=tier.number)
        pools = [p for p in processes.pools.values() if p.queue.split(".")[0] == f"tier{tier.number}"]
        lines.append(
            TierLine(
                number=tier.number,
                name=tier.name,
                target=tier.target,
                total=outcomes.add(series),
                lag=numbers.times.of("lag", tier=tier.number),
                spark=[counts.ratio for counts in series],
                since=outcomes.below_since(series, tier.target, numbers.span),
                oldest_seconds=_oldest(numbers, tier=tier.number),
                waiting=numbers.board.count(*WAITING, tier=tier.number),
                slots=sum(pool.slots for pool in pools),
                busy=sum(pool.busy for pool in pools),
            )
        )
    return lines


def _oldest(numbers: Numbers, *, tier: int | None = None, name: str | None = None) -> float | None:
    found = [at for (t, n), at in numbers.oldest.items() if tier in (None, t) and name in (None, n)]
    # What is open is open now, whatever the range.
    seconds = (numbers.board.now - min(found)).total_seconds() if found else -1.0
    # A job whose time has not come is not old.
    return seconds if seconds >= 0 else None
