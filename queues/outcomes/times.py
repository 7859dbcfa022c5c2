"""Outcome lag, the time in each stage, reasons of death: from histograms, over the minute in which they were counted.

A job's lag is counted when it is confirmed, its time in a stage when it leaves the stage.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec
from django.db import connection

from queues import histogram
from queues.outcomes.flow import types_of
from queues.outcomes.ranges import Span, covered
from queues.states import REASON_CODES

Pair = tuple[int, str]
Buckets = Mapping[int, int]
_K = TypeVar("_K", int, str)
REASONS: Final = {code: reason.value for reason, code in REASON_CODES.items()}

STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "waiting": ("wait",),
    "running": ("run", "lost"),
    "retrying": ("backoff",),
    "awaiting": ("await",),
}
"""Stage → the measures that count its time: waiting for a worker, running (also in vain), waiting for the next attempt,
awaiting the proof."""
MEASURES: Final = ("lag", "wait", "run", "lost", "backoff", "await", "dead")

_ROWS: Final = covered(
    "SELECT at, type, tier, measure, counts FROM queues_outcomebuckets"
    " WHERE type = ANY(%(types)s::text[]) AND measure = ANY(%(measures)s::text[])"
    " AND (%(tier)s::smallint IS NULL OR tier = %(tier)s)"
)
_SUMMARY: Final = f"SELECT tier, type, measure, counts FROM ({_ROWS}) AS r"  # noqa: S608 (no value is formatted in)
_SERIES: Final = f"""
SELECT (extract(epoch FROM date_bin(make_interval(secs => %(slot)s), at, %(origin)s) - %(origin)s) / %(slot)s)::integer,
  counts FROM ({_ROWS}) AS r
"""  # noqa: S608 (no value is formatted in)
_counts: Final = msgspec.json.Decoder(dict[int, int])
TOGETHER: Final = ("", 0)
"""The type and the tier of rows that count all types, and all tiers."""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Seconds; None without data."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


def percentiles(counts: Buckets) -> Percentiles:
    """Read the percentiles of a histogram."""
    return Percentiles(
        p50=histogram.quantile(counts, 0.5),
        p95=histogram.quantile(counts, 0.95),
        p99=histogram.quantile(counts, 0.99),
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How much time jobs spent in one stage, of those that left it. `share`: of the time in all stages.

    Units: seconds. `seconds` is summed from histograms, so within 5 %.
    """

    name: str
    n: int
    seconds: float
    share: float | None
    p95: float | None


@dataclass(frozen=True, kw_only=True)
class Times:
    """Histograms by measure and counts of deaths by reason, of every (tier, type)."""

    histograms: Mapping[Pair, Mapping[str, Buckets]] = field(default_factory=dict)
    dead: Mapping[Pair, Mapping[str, int]] = field(default_factory=dict)

    def of(self, measure: str, *, tier: int | None = None, name: str | None = None) -> Percentiles:
        """Return the percentiles of a measure, of a tier, a type or all."""
        return percentiles(self.merged((measure,), tier=tier, name=name))

    def stages(self, *, tier: int | None = None, name: str | None = None) -> list[Stage]:
        """Return where the time went, in the order of a job's life."""
        counted = [(stage, self.merged(measures, tier=tier, name=name)) for stage, measures in STAGES.items()]
        sums = [sum(histogram.value_of(bucket) * n for bucket, n in counts.items()) for _, counts in counted]
        whole = sum(sums)
        return [
            Stage(
                name=stage,
                n=sum(counts.values()),
                seconds=seconds,
                share=seconds / whole if whole > 0 else None,
                p95=histogram.quantile(counts, 0.95),
            )
            for (stage, counts), seconds in zip(counted, sums, strict=True)
        ]

    def dead_by_reason(self, *, tier: int | None = None, name: str | None = None) -> dict[str, int]:
        """Return deaths by reason, most first."""
        merged = _merge(found for pair, found in self.dead.items() if _is_of(pair, tier, name))
        return dict(sorted(merged.items(), key=lambda item: -item[1]))

    def merged(self, measures: Sequence[str], *, tier: int | None = None, name: str | None = None) -> dict[int, int]:
        """Return one histogram of some measures together."""
        return _merge(
            found.get(measure, {})
            for pair, found in self.histograms.items()
            if _is_of(pair, tier, name)
            for measure in measures
        )


def _is_of(pair: Pair, tier: int | None, name: str | None) -> bool:
    return tier in (None, pair[0]) and name in (None, pair[1])


def _merge(several: Iterable[Mapping[_K, int]]) -> dict[_K, int]:
    merged: dict[_K, int] = {}
    for counts in several:
        for key, n in counts.items():
            merged[key] = merged.get(key, 0) + n
    return merged


def times_of(rows: Iterable[tuple[int, str, str, str]]) -> Times:
    """Build from rows of (tier, type, measure, JSON of counts)."""
    found: dict[Pair, dict[str, dict[int, int]]] = {}
    for tier, of_type, measure, counts in rows:
        merged = found.setdefault((tier, of_type), {}).setdefault(measure, {})
        for bucket, n in _counts.decode(counts).items():
            merged[bucket] = merged.get(bucket, 0) + n
    dead = {
        pair: {REASONS.get(code, "other"): n for code, n in measures.pop("dead").items()}
        for pair, measures in found.items()
        if "dead" in measures
    }
    return Times(histograms={pair: measures for pair, measures in found.items() if measures}, dead=dead)


def times(
    span: Span,
    *,
    tier: int | None = None,
    name: str | None = None,
    names: Collection[str] | None = None,
    measures: Sequence[str] = MEASURES,
) -> Times:
    """Read the histograms of a span: of one type or several, each by itself, or of a tier or all, in one."""
    return times_of(_rows(_SUMMARY, _params(span.cover(slots=False), name, names, measures, tier=tier)))


def lag_series(span: Span, *, tier: int | None = None, name: str | None = None) -> list[Percentiles]:
    """Return the percentiles of the lag in each slot."""
    return lag_slots(span, tier=tier, name=name)[0]


def lag_slots(
    span: Span, *, tier: int | None = None, name: str | None = None, names: Collection[str] | None = None
) -> tuple[list[Percentiles], Percentiles]:
    """Return the percentiles of the lag in each slot and in the whole span."""
    found: list[dict[int, int]] = [{} for _ in span.slots]
    for slot, counts in _rows(_SERIES, _params(span.cover(slots=True), name, names, ("lag",), tier=tier)):
        if 0 <= slot < len(found):
            for bucket, n in _counts.decode(counts).items():
                found[slot][bucket] = found[slot].get(bucket, 0) + n
    return [percentiles(one) for one in found], percentiles(_merge(found))


def _params(
    cover: Mapping[str, Any],
    name: str | None,
    names: Collection[str] | None,
    measures: Sequence[str],
    *,
    tier: int | None = None,
) -> dict[str, Any]:
    types = types_of(name, names)
    if types is None:
        types, tier = [TOGETHER[0]], TOGETHER[1] if tier is None else tier
    return {**cover, "types": types, "measures": list(measures), "tier": tier}


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
