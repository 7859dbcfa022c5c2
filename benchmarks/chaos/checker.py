"""Judges a run by three histories: what clients were told, what the rows say, what the ledger saw."""

import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from benchmarks.chaos import latency
from benchmarks.chaos.clients import Told
from benchmarks.chaos.faults import Done
from benchmarks.chaos.handlers import ATOMIC, CHECKED

OPEN: Final = ("accepted", "processing", "retrying", "awaiting_confirmation")
LIMBO: Final = """
SELECT count(*) AS n FROM queues_job WHERE state IN ('processing', 'awaiting_confirmation')
  AND due_at < jobs_now() - interval '30 s' OR state IN ('accepted', 'retrying', 'awaiting_confirmation')
  AND expires_at < jobs_now() - interval '30 s' OR state = ANY(%s) AND due_at IS NULL
"""
ROWS: Final = """
SELECT id::text, type, state, reason, dedupe_key, fence, begun, attempt, crashes, evidence, late_evidence, failures,
  worker, accepted_at::text, started_at::text, finished_at::text, settled_at::text, due_at::text,
  extract(epoch FROM accepted_at)::float8 AS accepted
FROM queues_job WHERE dedupe_key IS NOT NULL
"""


@dataclass
class Verdicts:
    """Each promise with the evidence against it; all empty is what is promised."""

    broken: dict[str, list[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def hold(self) -> bool:
        return not any(self.broken.values())


def fetch(query: str, *parameters: Any) -> list[dict[str, Any]]:
    """Return rows."""
    with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5, row_factory=dict_row) as connection:
        return connection.execute(query, parameters or None).fetchall()


def still_open() -> int:
    """Count jobs without an end; -1 when the database does not answer."""
    try:
        return int(fetch("SELECT count(*) AS n FROM queues_job WHERE state = ANY(%s)", list(OPEN))[0]["n"])
    except psycopg.Error:
        return -1


def judge(told: dict[str, Told], effects_path: Path, faults: list[Done]) -> Verdicts:
    """Compare the histories."""
    jobs = fetch(ROWS)
    text = effects_path.read_text().splitlines() if effects_path.exists() else []
    effects: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in map(json.loads, text):
        effects[line["key"]].append(line)
    found = Verdicts()
    _accepts(found, told, jobs)
    _effects(found, jobs, effects)
    _atomic(found, jobs)
    found.broken["limbo rows"] = ["rows"] * int(fetch(LIMBO, list(OPEN))[0]["n"])
    found.broken["jobs not settled"] = [job for job in jobs if job["state"] in OPEN]
    states: dict[str, int] = defaultdict(int)
    for job in jobs:
        states[job["state"] + (f" {job['reason']}" if job["reason"] else "")] += 1
    found.broken["jobs ended otherwise than confirmed"] = [
        job for job in jobs if job["state"] not in ("confirmed", *OPEN)
    ]
    found.facts |= {
        "jobs": dict(states),
        "executions": sum(job["begun"] for job in jobs),
        "lost runs that were alone in their chunk": sum(job["crashes"] for job in jobs),
        "jobs run more than once": sum(job["begun"] > 1 for job in jobs),
        "runs that failed or were lost, by class": dict(
            Counter(failure.get("error_class") for job in jobs for failure in job["failures"]).most_common(8)
        ),
        "most attempts of a job": max((job["attempt"] for job in jobs), default=0),
        "effects": len(text),
        **latency.acting(faults, jobs, effects),
    }
    return found


def _accepts(found: Verdicts, told: dict[str, Told], jobs: list[dict[str, Any]]) -> None:
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        by_key[job["dedupe_key"]].append(job)
    ids = {job["id"] for job in jobs}
    found.broken["acknowledged accepts lost"] = [
        (key, sorted(one.ids - ids)) for key, one in told.items() if one.ids - ids or (one.ok and key not in by_key)
    ]
    found.broken["keys accepted twice"] = [
        (key, rows) for key, rows in by_key.items() if len(rows) > 1 or (key in told and len(told[key].ids) > 1)
    ]
    never = [key for key, one in told.items() if not one.ok]
    found.broken["keys never accepted after healing"] = never
    found.facts["keys"] = len(told)


def _effects(found: Verdicts, jobs: list[dict[str, Any]], effects: dict[str, list[dict[str, Any]]]) -> None:
    without, unmarked, same_run, stale, past = [], [], [], [], []
    twice = checked_twice = 0
    for job in jobs:
        if job["type"] == ATOMIC:
            continue
        mine = sorted(effects.get(job["dedupe_key"], []), key=lambda one: one["run"])
        refs = {one["ref"] for one in mine}
        proof = job["evidence"] or {}
        if job["state"] == "confirmed" and proof.get("ref") not in refs:
            without.append((job, mine))
        if job["state"] == "confirmed" and proof.get("run", 0) > job["fence"]:
            stale.append((job, mine))
        if len({(one["job"], one["run"]) for one in mine}) < len(mine):
            same_run.append((job, mine))
        if any(one["run"] > job["fence"] for one in mine):
            past.append((job, mine))
        if len(mine) > 1:
            twice += 1
            checked_twice += job["type"] == CHECKED
            if job["begun"] < 2 or not all(one["maybe_duplicate"] for one in mine[1:]):
                unmarked.append((job, mine))
    found.broken["confirmed without an effect"] = without
    found.broken["second effects that were not told"] = unmarked
    found.broken["runs that acted twice"] = same_run
    found.broken["effects of a run that the row does not know"] = past
    found.broken["evidence of a run that was not"] = stale
    found.facts |= {"keys with a second effect, told": twice - len(unmarked), "of these with a check": checked_twice}


def _atomic(found: Verdicts, jobs: list[dict[str, Any]]) -> None:
    rows = {
        str(row["id"]): int(row["n"]) for row in fetch("SELECT job_id AS id, count(*) AS n FROM chaos_row GROUP BY 1")
    }
    found.broken["atomic: confirmed without exactly one row, or a row without"] = [
        (job, rows.get(job["id"], 0))
        for job in jobs
        if job["type"] == ATOMIC and rows.get(job["id"], 0) != (job["state"] == "confirmed")
    ]
    found.facts["atomic rows"] = sum(rows.values())
