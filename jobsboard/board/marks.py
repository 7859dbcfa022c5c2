"""What happened in a span beside the jobs: annotations, switches, versions of contracts; and how many asked support.

Not here: writing annotations (`jobsboard.annotations`), drawing marks (`jobsboard.board.chart`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import connection

from jobsboard.board.chart import Lane
from jobsboard.board.chart_marks import Mark
from queues.outcomes import Span

MARKS_MAX: Final = 200
CONTACTS_MAX: Final = 10_000
"""How many annotations of support one page adds up, the newest first."""
CATEGORIES: Final = 5
OTHER: Final = "other"
_SWITCHES: Final[Mapping[str, str]] = {
    f"contract.{verb}": verb for verb in ("paused", "resumed", "deferred", "undeferred", "disabled", "enabled")
}

# Indexes annotation_by_kind or annotation_by_type, then audit_by_object: a type's contract changes, not its jobs'.
# The contacts of a slot and category are one row, so that a page does not grow with what a help desk sends.
_READ: Final = """
WITH contacts AS MATERIALIZED (
  SELECT at, job_type, category, count FROM jobsboard_annotation
  WHERE kind = 'support' AND at >= %(since)s AND at <= %(until)s AND (%(type)s::text IS NULL OR job_type = %(type)s)
  ORDER BY at DESC LIMIT %(contacts)s
)
(SELECT 'support' AS kind, max(at) AS at, job_type, category AS word, sum(count)::bigint AS n,
   floor(extract(epoch FROM at - %(origin)s) / %(slot)s)::integer AS slot, '' AS url, '' AS who
 FROM contacts GROUP BY job_type, category, slot ORDER BY slot DESC, n DESC LIMIT %(rows)s)
UNION ALL
(SELECT kind, at, job_type, word, 1, 0, url, who FROM (
   (SELECT kind, at, job_type, text AS word, url, created_by AS who FROM jobsboard_annotation
    WHERE kind IN ('deploy', 'incident') AND at >= %(since)s AND at <= %(until)s
      AND (%(type)s::text IS NULL OR job_type IN ('', %(type)s))
    ORDER BY at DESC LIMIT %(marks)s)
   UNION ALL
   (SELECT action, at, object_id, '', '', actor FROM queues_auditentry
    WHERE object_type = 'job_type' AND (%(type)s::text IS NULL OR object_id = %(type)s)
      AND action = ANY(%(switches)s) AND at >= %(since)s AND at <= %(until)s
    ORDER BY at DESC LIMIT %(marks)s)
   UNION ALL
   (SELECT 'version', at, job_type_id, 'v' || version, '', actor FROM queues_contractrevision
    WHERE version > 1 AND (%(type)s::text IS NULL OR job_type_id = %(type)s)
      AND at >= %(since)s AND at <= %(until)s
    ORDER BY at DESC LIMIT %(marks)s)
 ) AS m ORDER BY at DESC LIMIT %(marks)s)
"""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One mark. `kind` is one of `chart_marks.KINDS`, `job_type` empty where it is about all, `who` did or said it."""

    kind: str
    at: datetime
    job_type: str
    word: str
    url: str
    who: str


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """How many asked support for one reason in one slot, and the last time."""

    at: datetime
    job_type: str
    category: str
    n: int
    slot: int


@dataclass(frozen=True, kw_only=True)
class Happened:
    """What was read for a span; events newest first."""

    span: Span
    events: Sequence[Event]
    contacts: Sequence[Contacts]

    def marks(self, *, types: Collection[str], named: bool) -> list[Mark]:
        """Return the marks of these job types, with their names or without, and those about all types."""
        return [
            Mark(event.at, _words(event, named=named), event.kind)
            for event in self.events
            if not event.job_type or event.job_type in types
        ]

    def support(self) -> list[tuple[str, int]]:
        """Return how many asked by category, most first; beyond five they are one."""
        sums: dict[str, int] = {}
        for one in self.contacts:
            sums[one.category] = sums.get(one.category, 0) + one.n
        ranked = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(n for _, n in ranked[CATEGORIES:])
        return [*ranked[:CATEGORIES], *([(OTHER, rest)] if rest else [])]

    def lane(self) -> Lane | None:
        """Return the counts of support by category and slot, to stand under a chart; None without any."""
        names = [name for name, _ in self.support()]
        counts = {name: [0] * len(self.span.slots) for name in names}
        for one in self.contacts:
            name = one.category if one.category in names[:CATEGORIES] else OTHER
            counts[name][min(max(one.slot, 0), len(self.span.slots) - 1)] += one.n
        return Lane(name="support", counts=counts) if counts else None


def _words(event: Event, *, named: bool) -> str:
    """Say an event in the few words that stand beside its line; with its type where the chart is about several."""
    about = event.job_type if named else ""
    by = f"by {event.who}" if event.kind in _SWITCHES.values() else ""
    return " ".join(part for part in (event.word, about, by) if part)


def read(span: Span, *, name: str | None = None) -> Happened:
    """Read what happened to a job type, or to all: one statement."""
    params: dict[str, Any] = {
        "since": span.since, "until": span.until, "origin": span.origin, "slot": span.slot_seconds, "type": name,
        "switches": list(_SWITCHES), "marks": MARKS_MAX, "contacts": CONTACTS_MAX, "rows": 10 * MARKS_MAX,
    }  # fmt: skip
    events: list[Event] = []
    contacts: list[Contacts] = []
    with connection.cursor() as cursor:
        cursor.execute(_READ, params)
        for kind, at, job_type, word, n, slot, url, who in cursor.fetchall():
            if kind == "support":
                contacts.append(Contacts(at=at, job_type=job_type, category=word, n=n, slot=slot))
            else:
                event = Event(kind=_SWITCHES.get(kind, kind), at=at, job_type=job_type, word=word, url=url, who=who)
                events.append(event)
    return Happened(span=span, events=sorted(events, key=lambda one: one.at, reverse=True), contacts=contacts)
