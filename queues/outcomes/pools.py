"""Queues and workers now: who consumes what, what each worker runs, since when work waits for one, what is held back.

One bounded statement each; nothing counts or scans jobs. Not here: counts and rates (`now`, `flow`, `times`).
"""

import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db import connection

from queues.outcomes.causes.facts import in_index_order
from queues.outcomes.now import PAIRS_MAX, Board

Pair = tuple[int, str]

WORKERS_MAX: Final = 1000
"""Processes that are read, the newest heartbeats first."""
RUNS_MAX: Final = 2000
"""Running jobs that are looked at, those whose leases end first."""
PRIORITIES_MAX: Final = 10
"""Of one (tier, type) the oldest due job is looked for in so many priorities, the highest first."""
_REPORTS: Final = dt.timedelta(seconds=5)
"""Longer than from one report of a worker to the next: so long it may run before its first, and after its last."""
_QUEUE: Final = re.compile(r"tier([123])(\.[a-z0-9_-]{1,32})?")

_WORKERS: Final = """
SELECT id, kind, hostname, pid, queues, slots, least(busy, slots), trouble, release, started_at, seen_at,
  seen_at <= jobs_now() - make_interval(secs => %(gone)s)
FROM queues_workerprocess ORDER BY seen_at DESC, id LIMIT %(most)s
"""

# Index job_lease.
_RUNS: Final = """
SELECT jsonb_agg(jsonb_build_array(id, type, worker, extract(epoch FROM started_at))) FROM (
  SELECT id, type, worker, started_at FROM queues_job
  WHERE state = 'processing' ORDER BY due_at LIMIT %(most)s) AS r
"""

# Index job_staging: one look per pair, priority and partition. Of a priority the first entry is the one due first.
_DUE: Final = """
WITH RECURSIVE first AS (
  SELECT w.tier, w.type, 1 AS n, j.priority, j.due_at
  FROM unnest(%(tiers)s::smallint[], %(types)s::text[]) AS w (tier, type) CROSS JOIN LATERAL (
    SELECT priority, due_at FROM queues_job
    WHERE state IN ('accepted', 'retrying') AND tier = w.tier AND type = w.type AND NOT probe
    ORDER BY priority DESC, due_at LIMIT 1) AS j
  UNION ALL
  SELECT f.tier, f.type, f.n + 1, j.priority, j.due_at
  FROM first f CROSS JOIN LATERAL (
    SELECT priority, due_at FROM queues_job
    WHERE state IN ('accepted', 'retrying') AND tier = f.tier AND type = f.type AND NOT probe
      AND priority < f.priority
    ORDER BY priority DESC, due_at LIMIT 1) AS j
  WHERE f.n < %(priorities)s
)
SELECT jsonb_agg(jsonb_build_array(tier, type, extract(epoch FROM at))) FROM (
  SELECT tier, type, min(due_at) AS at FROM first WHERE due_at <= jobs_now() GROUP BY tier, type) AS d
"""

_HOLDS: Final = """
SELECT name, CASE WHEN paused THEN 'paused' ELSE 'deferred' END,
  CASE WHEN paused THEN paused_by ELSE deferred_by END, CASE WHEN paused THEN paused_reason ELSE deferred_reason END,
  CASE WHEN paused THEN paused_until ELSE deferred_until END
FROM queues_jobtype WHERE paused OR deferred ORDER BY name
"""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A worker or a scheduler as it reported itself last. `silent`: that is longer ago than it may be.

    `queues` is empty for a worker that takes nothing more, since it stops. `release`: what its code knows, 0 is not
    known.
    """

    id: str
    kind: str
    hostname: str
    pid: int
    queues: tuple[str, ...]
    slots: int
    busy: int
    trouble: str
    release: int
    started_at: dt.datetime
    seen_at: dt.datetime
    silent: bool

    @property
    def draining(self) -> bool:
        """It lives, and takes nothing more."""
        return self.kind == "worker" and not self.silent and not self.queues

    @property
    def well(self) -> bool:
        """It lives and says nothing bad of itself."""
        return not self.silent and not self.trouble


@dataclass(frozen=True, kw_only=True)
class RunNow:
    """A job whose run holds a lease. `worker` is the name under which it was claimed."""

    id: UUID
    type: str
    worker: str
    started_at: dt.datetime

    @property
    def host(self) -> str:
        """Where it was claimed."""
        return self.worker.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Runs by the process that has them, the longest first. `unplaced`: several processes of their host may have them.

    `astray`: no process of their host that lived when they began has reported itself, so nobody extends their leases.
    `cut_off`: there may be more runs than were looked at.
    """

    by_process: Mapping[str, Sequence[RunNow]]
    unplaced: Sequence[RunNow]
    astray: Sequence[RunNow]
    cut_off: bool


@dataclass(frozen=True, kw_only=True)
class Held:
    """A type that is paused or deferred: by whom, why, until when."""

    type: str
    how: str
    by: str
    reason: str
    until: dt.datetime | None


def queue_of(board: Board, *, tier: int, name: str) -> str:
    """Return the queue in which jobs of a type wait: that of its contract; of a type that is gone, the tier's own."""
    known = board.types.get(name)
    if known is None:
        return f"tier{tier}"
    return f"tier{known.tier}.{known.pool}" if known.pool else f"tier{known.tier}"


def queue_names(board: Board, *, consumed: Iterable[str]) -> dict[str, int]:
    """Return every queue that a tier has, a type names or a worker consumes, with its tier, in order."""
    found = {f"tier{number}": number for number in board.tiers}
    found |= {queue_of(board, tier=one.tier, name=one.name): one.tier for one in board.types.values()}
    found |= {name: int(match[1]) for name in consumed if (match := _QUEUE.fullmatch(name))}
    return dict(sorted(found.items()))


def fleet(*, gone_seconds: float) -> list[Process]:
    """Return the processes that reported themselves in the last hour; silent are those not seen for `gone_seconds`."""
    with connection.cursor() as cursor:
        cursor.execute(_WORKERS, {"gone": gone_seconds, "most": WORKERS_MAX})
        rows = cursor.fetchall()
    names = ("id", "kind", "hostname", "pid", "queues", "slots", "busy", "trouble", "release", "started_at", "seen_at",
             "silent")  # fmt: skip
    return [
        Process(**{**dict(zip(names, row, strict=True)), "queues": tuple(sorted(map(str, json.loads(row[4]))))})
        for row in rows
    ]


def runs() -> list[RunNow]:
    """Return the runs that hold a lease, at most RUNS_MAX."""
    found = in_index_order(_RUNS, {"most": RUNS_MAX})
    return [
        RunNow(id=UUID(job_id), type=name, worker=worker or "", started_at=_time(started))
        for job_id, name, worker, started in _json(found)
    ]


def place(found: Sequence[RunNow], processes: Sequence[Process], *, board: Board) -> Placed:
    """Say which process has which run.

    A run is claimed under its host and a process id, which is that of the worker or, with a pool of processes, of one
    of its children. Then it is the only worker of that host that consumes its queue, or stops, and lived at that time.
    """
    workers = [one for one in processes if one.kind == "worker"]
    by_id = {one.id: one for one in workers}
    by_process: dict[str, list[RunNow]] = {}
    unplaced, astray = [], []
    for run in sorted(found, key=lambda run: run.started_at):
        own = f"{run.host}/{run.worker.rpartition('/')[2].split('.')[0]}"
        here = [one for one in workers if one.hostname == run.host and _lived(one, run.started_at)]
        queue = queue_of(board, tier=0, name=run.type)
        takes = [by_id[own]] if own in by_id else [one for one in here if queue in one.queues or not one.queues] or here
        if len(takes) == 1:
            by_process.setdefault(takes[0].id, []).append(run)
        elif takes:
            unplaced.append(run)
        else:
            astray.append(run)
    return Placed(by_process=by_process, unplaced=unplaced, astray=astray, cut_off=len(found) >= RUNS_MAX)


def _lived(process: Process, at: dt.datetime) -> bool:
    began = process.started_at <= at + _REPORTS
    return began and (not process.silent or at <= process.seen_at + _REPORTS)


def due_since(pairs: Iterable[Pair]) -> dict[Pair, dt.datetime]:
    """Return since when the job of each (tier, type) is due that waits for a run for longest; probes are not asked."""
    asked = sorted(pairs)[:PAIRS_MAX]
    if not asked:
        return {}
    params = {
        "tiers": [tier for tier, _ in asked],
        "types": [name for _, name in asked],
        "priorities": PRIORITIES_MAX,
    }
    return {(tier, name): _time(at) for tier, name, at in _json(in_index_order(_DUE, params))}


def holds() -> dict[str, Held]:
    """Return the types that are paused or deferred; one that is both is paused."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDS)
        return {
            name: Held(type=name, how=how, by=by, reason=reason, until=until)
            for name, how, by, reason, until in cursor.fetchall()
        }


def _json(row: tuple[Any, ...] | None) -> Any:
    return json.loads(row[0]) if row and row[0] else []


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
