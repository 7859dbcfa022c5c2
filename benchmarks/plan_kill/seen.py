"""Everything that is known of a run when it is over, read from the database and from the provider's file.

Not here: what follows from it (`checker.py`).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.history import fetch
from benchmarks.plan_kill.handlers import TYPE
from benchmarks.plan_kill.people import Told

Row = dict[str, Any]

ITEMS: Final = """
SELECT number, job_id::text AS job, state, code, child::text, outcome, failing, tries FROM dlq_planitem
WHERE plan_id = %s ORDER BY number
"""
JOBS: Final = """
SELECT id::text, state, reason, dedupe_key, idempotency_key, replay_of::text, replayed_by::text, resolution
FROM queues_job WHERE type = %s ORDER BY id
"""
KEYS: Final = "SELECT key, job_id::text AS job FROM queues_dedupekey WHERE type = %s"
ENTRIES: Final = """
SELECT action, object_type, object_id, after ->> 'replayed_by' AS child, after ->> 'plan' AS plan FROM queues_auditentry
WHERE object_type = 'replay_plan' OR object_type = 'job' AND action IN ('job.replayed', 'dead_letter.ignored')
"""
COUNTS: Final = "SELECT type, reason, fingerprint, died, open FROM queues_failurecount"
TRUE_COUNTS: Final = """
SELECT type, reason, left(coalesce(fingerprint, ''), 16) AS fingerprint, count(*) AS died,
  count(*) FILTER (WHERE resolution = 'open') AS open
FROM queues_job WHERE state = 'dead' AND NOT probe GROUP BY 1, 2, 3
"""
GROUPS: Final = """
SELECT id, type, reason, fingerprint, state, (SELECT a.plan_id::text FROM dlq_planfailure a
  WHERE a.type = g.type AND a.reason = g.reason AND a.fingerprint = g.fingerprint LIMIT 1) AS plan
FROM dlq_failuregroup g
"""
PLANS: Final = "SELECT * FROM dlq_replayplan ORDER BY created_at"


@dataclass
class Seen:
    """Shape: rows as dicts. `fates` by the id of the job that died; `effects` are the lines of the provider."""

    plan: str
    key: str
    fates: dict[str, str]
    told: Told
    items: list[Row] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)
    holders: dict[str, str] = field(default_factory=dict)
    """Dedupe key → the job that holds it."""
    entries: list[Row] = field(default_factory=list)
    counts: list[Row] = field(default_factory=list)
    true_counts: list[Row] = field(default_factory=list)
    groups: list[Row] = field(default_factory=list)
    plans: list[Row] = field(default_factory=list)
    effects: list[Row] = field(default_factory=list)
    recounts: list[str] = field(default_factory=list)
    """Lines of schedulers that had to put counts right."""


def read(seen: Seen, *, effects: Path, logs: Path) -> None:
    """Read it all."""
    seen.items = fetch(ITEMS, seen.plan)
    seen.jobs = fetch(JOBS, TYPE)
    seen.holders = {row["key"]: row["job"] for row in fetch(KEYS, TYPE)}
    seen.entries = fetch(ENTRIES)
    seen.counts, seen.true_counts, seen.groups = fetch(COUNTS), fetch(TRUE_COUNTS), fetch(GROUPS)
    seen.plans = fetch(PLANS)
    seen.effects = [json.loads(line) for line in effects.read_text().splitlines()]
    seen.recounts = [
        line for log in logs.glob("scheduler-*.log") for line in log.read_text().splitlines() if "not right" in line
    ]
