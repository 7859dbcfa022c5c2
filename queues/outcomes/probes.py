"""How the probes went: the state of each type that is probed, and its last runs. Nothing here reads jobs."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection

RUNS_SHOWN: Final = 60

# A type whose contract asks for probes since a moment ago has no row of its own so far.
_NOW: Final = """
SELECT c.name, c.tier_id, c.probe_every_seconds, c.window_seconds, c.paused OR c.deferred OR NOT c.enabled,
  p.next_at, coalesce(p.failures, 0), p.failing_since, p.last_ok_at, p.took_seconds, r.outcome, r.settled_at,
  coalesce(r.reason, ''), coalesce(r.detail, '')
FROM queues_jobtype c LEFT JOIN queues_probe p ON p.type = c.name
LEFT JOIN LATERAL (
  SELECT outcome, settled_at, reason, detail FROM queues_proberun r
  WHERE r.type = c.name AND r.outcome <> 'running' ORDER BY r.id DESC LIMIT 1
) AS r ON true
WHERE c.probe_every_seconds > 0 AND (%(types)s::text[] IS NULL OR c.name = ANY(%(types)s::text[]))
ORDER BY c.tier_id, c.name
"""

_RUNS: Final = """
SELECT r.type, r.id, r.job_id, r.begun_at, r.settled_at, r.outcome, r.took_seconds, r.window_seconds, r.reason,
  r.detail, r.late_at, r.by
FROM unnest(%(types)s::text[]) AS t (type) CROSS JOIN LATERAL (
  SELECT * FROM queues_proberun WHERE type = t.type ORDER BY id DESC LIMIT %(limit)s
) AS r
ORDER BY r.type, r.id
"""


@dataclass(frozen=True, kw_only=True)
class ProbeNow:
    """How the probes of one type go. `outcome`, `settled_at`, `reason` and `detail` are of the last settled run.

    `outcome`: passed, failed, skipped, or None before the first one.
    """

    type: str
    tier: int
    every_seconds: int
    window_seconds: int
    paused: bool
    """Nothing is sent: the type is paused, deferred or disabled."""
    next_at: dt.datetime | None
    failures: int
    """In a row; a skipped run is none and ends no row."""
    failing_since: dt.datetime | None
    last_ok_at: dt.datetime | None
    took_seconds: float | None
    """From ready to confirmed, of the last run that passed."""
    outcome: str | None
    settled_at: dt.datetime | None
    reason: str
    detail: str

    @property
    def passes(self) -> bool | None:
        """Whether the last run that tells anything passed; None before there is one."""
        if self.failures:
            return False
        return None if self.last_ok_at is None else True


@dataclass(frozen=True, kw_only=True)
class RunOfProbe:
    """One run. `job_id` is None where nothing was accepted; `late_at` is when a proof came after it had failed."""

    id: int
    job_id: UUID | None
    begun_at: dt.datetime
    settled_at: dt.datetime | None
    outcome: str
    took_seconds: float | None
    window_seconds: int
    reason: str
    detail: str
    late_at: dt.datetime | None
    by: str


def probes(types: Sequence[str] | None = None) -> list[ProbeNow]:
    """Return the types whose contract asks for probes, all or those named, by tier and name, in one statement."""
    names = (
        "type", "tier", "every_seconds", "window_seconds", "paused", "next_at", "failures", "failing_since",
        "last_ok_at", "took_seconds", "outcome", "settled_at", "reason", "detail",
    )  # fmt: skip
    return [
        ProbeNow(**dict(zip(names, row, strict=True)))
        for row in _rows(_NOW, {"types": None if types is None else list(types)})
    ]


def probe_runs(types: Sequence[str], *, limit: int = RUNS_SHOWN) -> dict[str, list[RunOfProbe]]:
    """Return the last runs of each type, oldest first. A type without runs is not in it."""
    names = (
        "id", "job_id", "begun_at", "settled_at", "outcome", "took_seconds", "window_seconds", "reason", "detail",
        "late_at", "by",
    )  # fmt: skip
    found: dict[str, list[RunOfProbe]] = {}
    for name, *row in _rows(_RUNS, {"types": list(types), "limit": limit}):
        found.setdefault(name, []).append(RunOfProbe(**dict(zip(names, row, strict=True))))
    return found


def _rows(sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
