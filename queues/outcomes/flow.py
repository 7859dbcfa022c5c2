"""Counts over time from rollups: cohorts and their in-window ratio, acceptances, confirmations, failures."""

import datetime as dt
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from django.db import connection

from queues.outcomes.ranges import Span

Pair = tuple[int, str]

_HAPPENED: Final = (
    "accepted", "duplicates", "confirmed", "dead", "expired", "cancelled", "replayed", "runs", "failed", "lost"
)  # fmt: skip
_ROW: Final = ", ".join(f"r.{name}" for name in _HAPPENED)
_NOTHING: Final = ", ".join("0" for _ in _HAPPENED)
_SUMS: Final = ", ".join(f"sum({name})::bigint AS {name}" for name in (*_HAPPENED, "due", "kept"))


def _cohort(passed: str) -> str:
    due, kept = "greatest(r.ready - r.excluded, 0)", "r.in_window"
    return f"CASE WHEN {passed} THEN {due} ELSE 0 END, CASE WHEN {passed} THEN {kept} ELSE 0 END"


_WINDOW: Final = "make_interval(secs => r.window_seconds)"
_MINUTE_PASSED: Final = f"r.at + interval '1 minute' + {_WINDOW} <= %(now)s"
_HOUR_PASSED: Final = f"r.at + interval '1 hour' + {_WINDOW} <= %(now)s"

_OF_TYPE: Final = "(%(type)s::text IS NULL OR r.type = %(type)s)"
_MINUTES: Final = f"""
  SELECT r.type, r.tier, r.at, {_ROW}, {_cohort(_MINUTE_PASSED)} FROM queues_outcomerollup r
  WHERE r.grain = 'minute' AND r.at >= %(minutes)s AND r.at <= %(now)s AND {_OF_TYPE}
"""  # noqa: S608 (no value is formatted in)

# Whole hours; and of the one hour in which a window passes now, the cohorts of its minutes: there the hour's own cohort
# does not count yet. Windows that no contract has any more count once their hour is over. OFFSET 0 keeps the planner
# from turning the few minutes of each window into a join with the whole table.
_HOURS: Final = f"""
  UNION ALL
  SELECT r.type, r.tier, r.at, {_ROW}, {_cohort(_HOUR_PASSED)} FROM queues_outcomerollup r
  WHERE r.grain = 'hour' AND r.at >= %(since)s AND r.at < %(minutes)s AND {_OF_TYPE}
  UNION ALL
  SELECT m.type, m.tier, m.at, {_NOTHING}, m.due, m.in_window
  FROM (SELECT DISTINCT window_seconds, date_trunc('hour', %(now)s - make_interval(secs => window_seconds)) AS hour
    FROM queues_jobtype) AS w
  CROSS JOIN LATERAL (
    SELECT r.type, r.tier, r.at, greatest(r.ready - r.excluded, 0) AS due, r.in_window FROM queues_outcomerollup r
    WHERE r.grain = 'minute' AND r.at >= greatest(w.hour, %(since)s)
      AND r.at < least(w.hour + interval '1 hour', %(minutes)s)
      AND r.window_seconds = w.window_seconds AND {_MINUTE_PASSED} AND {_OF_TYPE} OFFSET 0
  ) AS m
"""  # noqa: S608 (no value is formatted in)

_FLOW: Final = f"""
WITH part (type, tier, at, {", ".join(_HAPPENED)}, due, kept) AS ({{parts}})
SELECT tier, type, (extract(epoch FROM begun - %(since)s) / %(slot)s)::integer, {", ".join((*_HAPPENED, "due", "kept"))}
FROM (SELECT tier, type, date_bin(make_interval(secs => %(slot)s), at, %(since)s) AS begun, {_SUMS}
  FROM part GROUP BY 1, 2, 3) AS slots
"""  # noqa: S608 (no value is formatted in)
_BY_MINUTE: Final = _FLOW.format(parts=_MINUTES)
_BY_HOUR: Final = _FLOW.format(parts=_MINUTES + _HOURS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What happened in some time. `due`, `kept`: of cohorts that became ready then, once their window passed."""

    accepted: int = 0
    duplicates: int = 0
    confirmed: int = 0
    dead: int = 0
    expired: int = 0
    cancelled: int = 0
    replayed: int = 0
    runs: int = 0
    failed: int = 0
    lost: int = 0
    due: int = 0
    kept: int = 0

    @property
    def ratio(self) -> float | None:
        """The share confirmed in its window; None while no window has passed."""
        return min(self.kept / self.due, 1.0) if self.due else None

    @property
    def duplicate_rate(self) -> float | None:
        """Duplicates suppressed, of everything that was sent."""
        sent = self.accepted + self.duplicates
        return self.duplicates / sent if sent else None

    @property
    def dead_rate(self) -> float | None:
        """Dead, of everything that settled."""
        settled = self.confirmed + self.dead + self.expired
        return self.dead / settled if settled else None


_NAMES: Final = tuple(field.name for field in fields(Counts))
_NONE: Final = Counts()
_values: Final = operator.attrgetter(*_NAMES)


def add(counts: Iterable[Counts]) -> Counts:
    """Sum counts."""
    listed = [_values(one) for one in counts]
    return Counts(**dict(zip(_NAMES, map(sum, zip(*listed, strict=True)), strict=True))) if listed else _NONE


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Counts of every (tier, type) by slot; a slot without an event is not there."""

    span: Span
    pairs: Mapping[Pair, Mapping[int, Counts]]

    def total(self, *, tier: int | None = None, name: str | None = None) -> Counts:
        """Sum over the whole span."""
        return add(one for slots in self._of(tier, name) for one in slots.values())

    def series(self, *, tier: int | None = None, name: str | None = None) -> list[Counts]:
        """Sum by slot, one entry for each."""
        found: list[list[Counts]] = [[] for _ in self.span.slots]
        for slots in self._of(tier, name):
            for index, one in slots.items():
                if 0 <= index < len(found):
                    found[index].append(one)
        # Mostly there is one type in a slot: nothing to sum.
        return [several[0] if len(several) == 1 else add(several) for several in found]

    def _of(self, tier: int | None, name: str | None) -> list[Mapping[int, Counts]]:
        return [slots for (t, n), slots in self.pairs.items() if tier in (None, t) and name in (None, n)]


def flow(span: Span, *, name: str | None = None) -> Flow:
    """Read the counts of a span, of one type or of all."""
    params: dict[str, Any] = {
        "now": span.until,
        "since": span.since,
        "minutes": span.hours[1] if span.by_hour else span.since,
        "slot": span.slot_seconds,
        "type": name,
    }
    pairs: dict[Pair, dict[int, Counts]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_BY_HOUR if span.by_hour else _BY_MINUTE, params)
        for tier, of_type, slot, *sums in cursor.fetchall():
            values = dict(zip((*_HAPPENED, "due", "kept"), sums, strict=True))
            pairs.setdefault((tier, of_type), {})[slot] = Counts(**values)
    return Flow(span=span, pairs=pairs)


def below_since(series: Sequence[Counts], target: float, span: Span) -> dt.datetime | None:
    """Return when the ratio fell below its target and stayed there; None while the newest known slot holds it."""
    since = None
    for begun, counts in zip(reversed(span.slots), reversed(series), strict=True):
        if counts.ratio is None:
            continue
        if counts.ratio >= target:
            break
        since = begun
    return since
