"""Breaks every promise behind the product's back, so that the checker shows that it would see it.

Triggers and constraints stand in the way of most of this; a superuser's session turns the triggers off.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.chaos.clients import Told
from benchmarks.chaos.exhaust import Probe
from benchmarks.chaos.handlers import CALLBACK, CANCELLED, DYING, PLAIN
from benchmarks.chaos.history import History, Line, fetch
from benchmarks.chaos.repairs import CancelTold, ReplayTold

# ruff: noqa: S608 (constants of this module)
PICK: Final = (
    f"(SELECT id FROM queues_job WHERE type = '{PLAIN}' AND state = 'confirmed' ORDER BY id OFFSET {{}} LIMIT 1)"
)
CHILD: Final = f"(SELECT id FROM queues_job WHERE type = '{DYING}' AND replay_of IS NOT NULL ORDER BY id LIMIT 1)"
STATEMENTS: Final = (
    f"DELETE FROM queues_job WHERE id = {PICK.format(0)}",
    f"UPDATE queues_job SET dedupe_key = (SELECT dedupe_key FROM queues_job WHERE id = {PICK.format(1)})"
    f" WHERE id = {PICK.format(2)}",
    f"UPDATE queues_job SET state = 'processing', due_at = jobs_now() - interval '1 h', settled_at = NULL,"
    f" finished_at = NULL, evidence = NULL WHERE id = {PICK.format(3)}",
    f"UPDATE queues_job SET state = 'dead', reason = 'poison', resolution = 'open', evidence = NULL"
    f" WHERE id = {PICK.format(4)}",
    f"UPDATE queues_job SET evidence = jsonb_set(evidence, '{{run}}', '99') WHERE id = {PICK.format(5)}",
    # Cancelled by nobody.
    f"UPDATE queues_job SET state = 'cancelled', reason = 'producer', resolution = 'open', evidence = NULL"
    f" WHERE id = (SELECT id FROM queues_job WHERE type = '{CANCELLED}' AND state = 'confirmed' LIMIT 1)",
    # A second child of one dead letter, and a dead letter that nobody replayed.
    f"UPDATE queues_job SET replay_of = (SELECT replay_of FROM queues_job WHERE id = {CHILD})"
    f" WHERE id = {PICK.format(6)}",
    f"UPDATE queues_job SET replayed_by = NULL WHERE type = '{DYING}' AND replayed_by = {CHILD}",
    "DELETE FROM chaos_row WHERE job_id = (SELECT job_id FROM chaos_row LIMIT 1)",
)
SECOND_CLAIM: Final = """
INSERT INTO chaos_history (job_id, was, state, fence, due_at, at)
SELECT job_id, 'retrying', 'processing', fence + 1, due_at, at + interval '1 s' FROM chaos_history
WHERE job_id = %s AND state = 'processing' LIMIT 1
"""
CLAIMED: Final = """
SELECT job_id::text AS id, extract(epoch FROM at)::float8 AS at FROM chaos_history
WHERE job_id = %s AND state = 'processing' LIMIT 1
"""


def break_all(known: History, effects: Path) -> list[str]:
    """Break what can be broken, before database and ledger are read; returns what the database refused."""
    lines = list(map(json.loads, effects.read_text().splitlines()))
    twice = _nth(PICK.format(7))
    callback = fetch(f"SELECT id::text FROM queues_job WHERE type = '{CALLBACK}' AND state = 'confirmed' LIMIT 2")
    parent = fetch(f"SELECT replay_of::text AS id FROM queues_job WHERE id = {CHILD}")
    refused = _break_rows(twice)
    effects.write_text("".join(json.dumps(line) + "\n" for line in _broken(lines, twice, callback)))
    known.told = {**known.told, "never": Told(PLAIN, unknown=1)}
    done = _nth(PICK.format(8))
    known.cancels.append(CancelTold(done, 200, "cancelled", "none", at=0.0))
    known.cancel_asked.clear()
    known.replays += [ReplayTold(row["id"], children={"nobody"}) for row in parent]
    [key] = fetch(f"SELECT dedupe_key FROM queues_job WHERE id = {PICK.format(8)}")
    known.probes += [
        Probe("slow", status=201, retryable=False, seconds=9.0, starved=True),
        Probe(key["dedupe_key"], status=503, retryable=True, seconds=0.1, starved=True),
    ]
    known.deaf.append("canary.nobody")
    return refused


def _nth(pick: str) -> str:
    return str(fetch(f"SELECT {pick}::text AS id")[0]["id"])


def _break_rows(twice: str) -> list[str]:
    refused = []
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(SECOND_CLAIM, [twice])
        for statement in STATEMENTS:
            try:
                connection.execute(statement)
            except psycopg.Error as error:
                refused.append(str(error).splitlines()[0])
    return refused


def _broken(lines: list[Line], twice: str, callback: list[dict[str, Any]]) -> list[Line]:
    """Return the ledger's lines: effects lost, doubled and of runs that were not; bodies that lived side by side;
    callbacks that never came or were answered something else."""
    effects = [line for line in lines if line["what"] == "effect" and line["key"] != "never"]
    lost, again, unknown = effects[-1], effects[-2], effects[-3]
    broken = [line for line in lines if line is not lost]
    broken += [again, {**again, "run": again["run"] + 1, "maybe_duplicate": False}]
    broken.append({**unknown, "run": 98, "maybe_duplicate": False})
    [claim] = fetch(CLAIMED, twice)
    first = {"what": "run", "key": "", "job": twice, "run": 1, "pid": 0, "phase": "end", "at": claim["at"] + 4.0}
    broken += [first, {**first, "run": 2, "phase": "start", "at": claim["at"] + 2.0}]
    broken.append(next(line for line in lines if line["what"] == "run" and line["phase"] == "start"))
    sent = [line for line in broken if line["what"] == "callback"]
    if len(callback) == 2:
        silent, told = callback[0]["id"], callback[1]["id"]
        broken = [line for line in broken if line["what"] != "callback" or line["job"] != silent]
        broken += [{**line, "result": "rejected", "outcome": "rejected"} for line in sent if line["job"] == told][:1]
    return broken
