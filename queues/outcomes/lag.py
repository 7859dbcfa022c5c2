"""Outcome lag and reasons of death from histograms, over the minute of confirmation or death."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection

from queues import histogram
from queues.outcomes.ranges import Span
from queues.states import REASON_CODES

Pair = tuple[int, str]
_REASONS: Final = {code: reason.value for reason, code in REASON_CODES.items()}

# Whole days from the day rollup, whole hours around them, the edges from minutes.
_SUMMARY: Final = """
SELECT tier, type, measure, bucket, sum(n)::bigint FROM queues_outcomehistogram
WHERE measure IN ('lag', 'dead') AND (%(type)s::text IS NULL OR type = %(type)s)
  AND ((grain = 'day' AND at >= %(first_day)s AND at < %(last_day)s)
    OR (grain = 'hour' AND at >= %(first)s AND at < %(first_day)s)
    OR (grain = 'hour' AND at >= %(last_day)s AND at < %(last)s)
    OR (grain = 'minute' AND at >= %(since)s AND at < %(first)s)
    OR (grain = 'minute' AND at >= %(last)s AND at <= %(now)s))
GROUP BY 1, 2, 3, 4
"""

# A row for each slot: thousands of rows of three numbers would cost more to read than to sum.
_SERIES: Final = """
SELECT (extract(epoch FROM begun - %(since)s) / %(slot)s)::integer, array_agg(bucket), array_agg(n) FROM (
  SELECT date_bin(make_interval(secs => %(slot)s), at, %(since)s) AS begun, bucket, sum(n)::bigint AS n
  FROM queues_outcomehistogram
  WHERE measure = 'lag' AND (%(type)s::text IS NULL OR type = %(type)s)
    AND (%(tier)s::smallint IS NULL OR tier = %(tier)s)
    AND ((grain = 'hour' AND at >= %(since)s AND at < %(minutes)s)
      OR (grain = 'minute' AND at >= %(minutes)s AND at <= %(now)s))
  GROUP BY 1, 2) AS slots
GROUP BY begun
"""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Seconds from ready to confirmed; None without a confirmed job."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


def percentiles(counts: Mapping[int, int]) -> Percentiles:
    """Read the percentiles of a histogram."""
    return Percentiles(
        p50=histogram.quantile(counts, 0.5),
        p95=histogram.quantile(counts, 0.95),
        p99=histogram.quantile(counts, 0.99),
    )


@dataclass(frozen=True, kw_only=True)
class Lags:
    """Histograms of lag and counts of deaths by reason, of every (tier, type) over a span."""

    lag: Mapping[Pair, Mapping[int, int]] = field(default_factory=dict)
    dead: Mapping[Pair, Mapping[str, int]] = field(default_factory=dict)

    def of(self, *, tier: int | None = None, name: str | None = None) -> Percentiles:
        """Return the percentiles of a tier, a type or all."""
        merged: dict[int, int] = {}
        for (of_tier, of_type), counts in self.lag.items():
            if tier in (None, of_tier) and name in (None, of_type):
                for bucket, n in counts.items():
                    merged[bucket] = merged.get(bucket, 0) + n
        return percentiles(merged)


def lags(span: Span, *, name: str | None = None) -> Lags:
    """Read the histograms of a span, of one type or of all."""
    (first, last), (first_day, last_day) = span.hours, span.days
    lag: dict[Pair, dict[int, int]] = {}
    dead: dict[Pair, dict[str, int]] = {}
    params = {
        "type": name, "since": span.since, "now": span.until,
        "first": first, "last": last, "first_day": first_day, "last_day": last_day,
    }  # fmt: skip
    for tier, of_type, measure, bucket, n in _rows(_SUMMARY, params):
        if measure == "lag":
            lag.setdefault((tier, of_type), {})[bucket] = n
        else:
            dead.setdefault((tier, of_type), {})[_REASONS.get(bucket, "other")] = n
    return Lags(lag=lag, dead=dead)


def lag_series(span: Span, *, tier: int | None = None, name: str | None = None) -> list[Percentiles]:
    """Return the percentiles of each slot."""
    return lag_slots(span, tier=tier, name=name)[0]


def lag_slots(span: Span, *, tier: int | None = None, name: str | None = None) -> tuple[list[Percentiles], Percentiles]:
    """Return the percentiles of each slot and of the whole span."""
    minutes = span.hours[1] if span.by_hour else span.since
    params = {"tier": tier, "type": name, "since": span.since, "now": span.until, "minutes": minutes}
    found: list[dict[int, int]] = [{} for _ in span.slots]
    whole: dict[int, int] = {}
    for slot, buckets, counts in _rows(_SERIES, {**params, "slot": span.slot_seconds}):
        if 0 <= slot < len(found):
            found[slot] = dict(zip(buckets, counts, strict=True))
            for bucket, n in found[slot].items():
                whole[bucket] = whole.get(bucket, 0) + n
    return [percentiles(one) for one in found], percentiles(whole)


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
