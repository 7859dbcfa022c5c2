"""Counts over time from rollups: cohorts and their in-window ratio, acceptances, confirmations, failures."""

import datetime as dt
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from django.db import connection

from queues.outcomes.ranges import Span

Pair = tuple[int, str]

HAPPENED: Final = (
    "accepted", "duplicates", "confirmed", "late", "dead", "expired", "cancelled", "replayed", "runs", "retries",
    "failed", "lost", "late_evidence", "contradictions", "superseded", "blind_attempts", "second_references",
    "confirmed_after_rejection",
)  # fmt: skip
_COHORT: Final = ("ready", "due", "kept", "open_late")
COLUMNS: Final = ", ".join(("at", "type", "tier", "window_seconds", "window_least", "in_window", "excluded", "ended"))
_ROW: Final = f"{COLUMNS}, ready, {', '.join(HAPPENED)}"
OF_TYPES: Final = "(%(types)s::text[] IS NULL OR type = ANY(%(types)s::text[]))"


def passed(length: str, *, row: str = "", judged: str = "%(judged)s") -> str:
    """Return SQL: the windows of a cohort of this length have passed, all of them. `row`: how its columns are named."""
    return f"{row}at + interval '{length}' + make_interval(secs => {row}window_seconds) <= {judged}"


def may_have_passed(*, row: str = "", judged: str = "%(judged)s") -> str:
    """Return SQL: of a longer cohort, the windows of some of its minutes may have passed."""
    least = f"make_interval(secs => {row}window_least)"
    return f"{row}ready > 0 AND {row}at + interval '1 minute' + {least} <= {judged}"


def _inside(outer: str, grain: str, length: str) -> str:
    """Return SQL for the finer rollups of one that cannot be judged as a whole. OFFSET 0 keeps the planner from turning
    these few lookups into a join with the whole table.
    """
    return f"""
  SELECT r.*, false FROM {outer} o CROSS JOIN LATERAL (
    SELECT {_ROW} FROM queues_outcomerollup i WHERE i.grain = '{grain}' AND i.at >= o.at
      AND i.at < o.at + interval '{length}' AND i.type = o.type AND i.tier = o.tier OFFSET 0) AS r
  WHERE NOT ({passed(length, row="o.")})
    AND {may_have_passed(row="o.")}"""


def _part(source: str, length: str) -> str:
    due = f"CASE WHEN {passed(length)} THEN"
    happened = ", ".join(f"CASE WHEN whole THEN {name} ELSE 0 END" for name in ("ready", *HAPPENED))
    return f"""SELECT at, type, tier, {happened}, {due} ready - excluded ELSE 0 END, {due} in_window ELSE 0 END,
    {due} ready - ended ELSE 0 END FROM {source}"""


# The happened counts come from the rollups that cover the span; so do cohorts, but of one whose windows have not all
# passed the finer rollups are judged.
_FLOW: Final = f"""
WITH day AS (
  SELECT {_ROW}, true AS whole FROM queues_outcomerollup
  WHERE grain = 'day' AND at >= %(first_day)s AND at < %(last_day)s AND {OF_TYPES}
), hour AS (
  SELECT {_ROW}, true AS whole FROM queues_outcomerollup WHERE grain = 'hour' AND {OF_TYPES}
    AND ((at >= %(first_hour)s AND at < %(first_day)s) OR (at >= %(last_day)s AND at < %(last_hour)s))
  UNION ALL {_inside("day", "hour", "1 day")}
), minute AS (
  SELECT {_ROW}, true AS whole FROM queues_outcomerollup WHERE grain = 'minute' AND {OF_TYPES}
    AND ((at >= %(since)s AND at < %(first_hour)s) OR (at >= %(last_hour)s AND at < %(end)s))
  UNION ALL {_inside("hour", "minute", "1 hour")}
), part (at, type, tier, ready, {", ".join(HAPPENED)}, due, kept, open_late) AS (
  {_part("day", "1 day")} UNION ALL {_part("hour", "1 hour")} UNION ALL {_part("minute", "1 minute")}
)
SELECT tier, kind, (extract(epoch FROM begun - %(origin)s) / %(slot)s)::integer, {", ".join((*HAPPENED, *_COHORT))}
FROM (SELECT tier, CASE WHEN %(together)s THEN '' ELSE type END AS kind,
    date_bin(make_interval(secs => %(slot)s), at, %(origin)s) AS begun,
    {", ".join(f"sum({name})::bigint AS {name}" for name in (*HAPPENED, *_COHORT))}
  FROM part GROUP BY 1, 2, 3) AS slots
"""  # noqa: S608 (no value is formatted in)


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What happened in some time. `ready`: jobs that became ready then. `due`, `kept`, `open_late`: of those whose
    window has passed, how many count, were confirmed in it, are open still.
    """

    accepted: int = 0
    duplicates: int = 0
    confirmed: int = 0
    late: int = 0
    dead: int = 0
    expired: int = 0
    cancelled: int = 0
    replayed: int = 0
    runs: int = 0
    retries: int = 0
    failed: int = 0
    lost: int = 0
    late_evidence: int = 0
    contradictions: int = 0
    superseded: int = 0
    blind_attempts: int = 0
    second_references: int = 0
    confirmed_after_rejection: int = 0
    ready: int = 0
    due: int = 0
    kept: int = 0
    open_late: int = 0

    @property
    def ratio(self) -> float | None:
        """The share confirmed in its window; None while no window has passed."""
        return min(self.kept / self.due, 1.0) if self.due > 0 else None

    @property
    def settled(self) -> int:
        """Jobs that ended by themselves: not those that somebody cancelled."""
        return self.confirmed + self.dead + self.expired

    @property
    def duplicate_rate(self) -> float | None:
        """Duplicates suppressed, of everything that was sent."""
        return _share(self.duplicates, self.accepted + self.duplicates)

    @property
    def dead_rate(self) -> float | None:
        """Dead, of everything that settled."""
        return _share(self.dead, self.settled)

    @property
    def expired_rate(self) -> float | None:
        """Expired, of everything that settled."""
        return _share(self.expired, self.settled)

    @property
    def late_rate(self) -> float | None:
        """Confirmed past their window, of the confirmed."""
        return _share(self.late, self.confirmed)

    @property
    def failure_rate(self) -> float | None:
        """Runs that failed or were lost, of those that ended or were lost in that time."""
        return _share(self.failed + self.lost, max(self.runs, self.failed + self.lost))

    @property
    def retry_pressure(self) -> float | None:
        """Runs that were not the first of their job, of all: how much of the workers' time goes into trying again."""
        return _share(self.retries, self.runs)

    @property
    def suspected(self) -> int:
        """Signs that something happened twice."""
        return self.blind_attempts + self.second_references + self.contradictions + self.confirmed_after_rejection


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None


NAMES: Final = tuple(field.name for field in fields(Counts))
_NONE: Final = Counts()
_values: Final = operator.attrgetter(*NAMES)


def add(counts: Iterable[Counts]) -> Counts:
    """Sum counts."""
    listed = [_values(one) for one in counts]
    return Counts(**dict(zip(NAMES, map(sum, zip(*listed, strict=True)), strict=True))) if listed else _NONE


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


def types_of(name: str | None, names: Collection[str] | None) -> list[str] | None:
    """Return the types that a statement reads; None for all."""
    return [name] if name is not None else None if names is None else sorted(names)


def flow(span: Span, *, name: str | None = None, names: Collection[str] | None = None, together: bool = False) -> Flow:
    """Read the counts of a span, of one type, of several, or of all; `together` under the one type "", which is less
    to read.
    """
    params: dict[str, Any] = {**span.cover(slots=True), "types": types_of(name, names), "together": together}
    pairs: dict[Pair, dict[int, Counts]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_FLOW, params)
        for tier, of_type, slot, *sums in cursor.fetchall():
            values = dict(zip((*HAPPENED, *_COHORT), sums, strict=True))
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
