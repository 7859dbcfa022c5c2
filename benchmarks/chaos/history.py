"""Everything that is known of a run when it is over: what clients were told, what the rows say, what the world saw.

Not here: what follows from it (`checker.py`).
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from benchmarks.chaos.clients import Told
from benchmarks.chaos.exhaust import Probe
from benchmarks.chaos.handlers import ATOMIC
from benchmarks.chaos.repairs import CancelTold, ReplayTold

OPEN: Final = ("accepted", "processing", "retrying", "awaiting_confirmation")
ENDS: Final = ("confirmed", "dead", "expired", "cancelled")
LIMBO: Final = """
SELECT id::text, state, due_at::text, expires_at::text FROM queues_job
WHERE state IN ('processing', 'awaiting_confirmation')
  AND due_at < jobs_now() - interval '30 s' OR state IN ('accepted', 'retrying', 'awaiting_confirmation')
  AND expires_at < jobs_now() - interval '30 s' OR state = ANY(%s) AND due_at IS NULL
"""
ROWS: Final = """
SELECT id::text, type, state, reason, dedupe_key, fence, begun, attempt, crashes, evidence, late_evidence, failures,
  worker, replay_of::text, replayed_by::text, root::text, resolution, accepted_at::text, started_at::text,
  finished_at::text, settled_at::text, due_at::text, extract(epoch FROM accepted_at)::float8 AS accepted
FROM queues_job WHERE dedupe_key IS NOT NULL ORDER BY id
"""
TRANSITIONS: Final = """
SELECT job_id::text AS job, was, state, fence, extract(epoch FROM due_at)::float8 AS due,
  extract(epoch FROM at)::float8 AS at
FROM chaos_history ORDER BY n
"""
ATOMIC_ROWS: Final = """
SELECT job_id::text AS id, count(*)::integer AS n, extract(epoch FROM min(at))::float8 AS at FROM chaos_row GROUP BY 1
"""
COUNTED: Final = """
SELECT type, sum(accepted) AS accepted, sum(confirmed) AS confirmed, sum(dead) AS dead, sum(expired) AS expired,
  sum(cancelled) AS cancelled, sum(replayed) AS replayed, sum(superseded) AS superseded
FROM queues_outcomerollup WHERE grain = 'minute' GROUP BY 1
"""
TRUE_COUNTS: Final = """
SELECT type, count(*) FILTER (WHERE replay_of IS NULL) AS accepted, count(*) FILTER (WHERE state = 'confirmed') AS
  confirmed, count(*) FILTER (WHERE state = 'dead') AS dead, count(*) FILTER (WHERE state = 'expired') AS expired,
  count(*) FILTER (WHERE state = 'cancelled') AS cancelled, count(*) FILTER (WHERE replay_of IS NOT NULL) AS replayed
FROM queues_job GROUP BY 1
"""
OPEN_COUNTED: Final = "SELECT type, state, sum(n)::bigint AS n FROM queues_statecount GROUP BY 1, 2 HAVING sum(n) <> 0"
TRUE_OPEN: Final = """
SELECT type, state, count(*) AS n FROM queues_job
WHERE state = ANY(%s) OR state = 'dead' AND resolution = 'open' GROUP BY 1, 2
"""

Line = dict[str, Any]
Row = dict[str, Any]


@dataclass
class History:
    """Shape: rows and lines as dicts; transitions by job, in their order; counts by type, then by what is counted."""

    told: Mapping[str, Told] = field(default_factory=dict)
    jobs: list[Row] = field(default_factory=list)
    effects: Mapping[str, list[Line]] = field(default_factory=dict)
    """By key."""
    runs: Mapping[tuple[str, int], list[Line]] = field(default_factory=dict)
    """Beginnings and ends of bodies, by job and run."""
    callbacks: Mapping[str, list[Line]] = field(default_factory=dict)
    """By job."""
    transitions: Mapping[str, list[Row]] = field(default_factory=dict)
    atomic: Mapping[str, Row] = field(default_factory=dict)
    counted: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    counted_truth: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    cancels: list[CancelTold] = field(default_factory=list)
    cancel_asked: set[str] = field(default_factory=set)
    replays: list[ReplayTold] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    limbo: list[Row] = field(default_factory=list)
    deaf: list[str] = field(default_factory=list)
    """Queues of workers that took no message at the end."""


def fetch(query: str, *parameters: Any) -> list[Row]:
    """Return rows."""
    with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5, row_factory=dict_row) as connection:
        return connection.execute(query, parameters or None).fetchall()


def still_open() -> int:
    """Count jobs without an end; -1 when the database does not answer."""
    return _count("SELECT count(*) AS n FROM queues_job WHERE state = ANY(%s)", list(OPEN))


def unfolded() -> int:
    """Count the changes that no rollup has yet; -1 when the database does not answer."""
    return _count("SELECT count(*) AS n FROM queues_outcomedelta")


def _count(query: str, *parameters: Any) -> int:
    try:
        return int(fetch(query, *parameters)[0]["n"])
    except psycopg.Error:
        return -1


def read(path: Path, history: History) -> None:
    """Read what the ledger wrote into a history."""
    effects, callbacks = defaultdict(list), defaultdict(list)
    runs: dict[tuple[str, int], list[Line]] = defaultdict(list)
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        if line["what"] == "effect":
            effects[line["key"]].append(line)
        elif line["what"] == "run":
            runs[line["job"], line["run"]].append(line)
        else:
            callbacks[line["job"]].append(line)
    history.effects, history.callbacks, history.runs = effects, callbacks, runs


def load(history: History) -> None:
    """Read what the database says into a history."""
    history.jobs = fetch(ROWS)
    transitions = defaultdict(list)
    for row in fetch(TRANSITIONS):
        transitions[row["job"]].append(row)
    history.transitions = transitions
    history.atomic = {row["id"]: row for row in fetch(ATOMIC_ROWS)}
    history.limbo = fetch(LIMBO, list(OPEN))
    history.counted = _by_type(fetch(COUNTED), fetch(OPEN_COUNTED))
    history.counted_truth = _by_type(fetch(TRUE_COUNTS), fetch(TRUE_OPEN, list(OPEN)))


def _by_type(totals: list[Row], opened: list[Row]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in totals:
        name = row.pop("type")
        found[name] = {what: int(n) for what, n in row.items()}
    for row in opened:
        found.setdefault(row["type"], {})[f"open {row['state']}"] = int(row["n"])
    return found


def is_volume(row: Row) -> bool:
    """Say whether a job is one of those that have neither a ledger line nor a history, only their rows."""
    return bool(row["type"] == ATOMIC)
