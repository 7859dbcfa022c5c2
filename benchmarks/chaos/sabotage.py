"""Breaks every promise behind the product's back, so that the checker shows that it would see it.

Triggers and constraints stand in the way of most of this; a superuser's session turns the triggers off.
"""

import json
import os
from pathlib import Path

import psycopg

from benchmarks.chaos.clients import Told

PICK = "(SELECT id FROM queues_job WHERE type = 'chaos.plain' AND state = 'confirmed' ORDER BY id OFFSET {} LIMIT 1)"
# ruff: noqa: S608 (constants of this module)
STATEMENTS = (
    f"DELETE FROM queues_job WHERE id = {PICK.format(0)}",
    f"UPDATE queues_job SET dedupe_key = (SELECT dedupe_key FROM queues_job WHERE id = {PICK.format(1)})"
    f" WHERE id = {PICK.format(2)}",
    f"UPDATE queues_job SET state = 'processing', due_at = jobs_now() - interval '1 h', settled_at = NULL,"
    f" finished_at = NULL, evidence = NULL WHERE id = {PICK.format(3)}",
    f"UPDATE queues_job SET state = 'dead', reason = 'poison', resolution = 'open', evidence = NULL"
    f" WHERE id = {PICK.format(4)}",
    f"UPDATE queues_job SET evidence = jsonb_set(evidence, '{{run}}', '99') WHERE id = {PICK.format(5)}",
    "DELETE FROM chaos_row WHERE job_id = (SELECT job_id FROM chaos_row LIMIT 1)",
)


def break_all(told: dict[str, Told], effects: Path) -> list[str]:
    """Break what can be broken; returns what the database refused."""
    refused = []
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in STATEMENTS:
            try:
                connection.execute(statement)
            except psycopg.Error as error:
                refused.append(str(error).splitlines()[0])
    lines = list(map(json.loads, effects.read_text().splitlines()))
    lost, again, unknown = lines[-1], lines[-2], lines[-3]
    lines[-1:] = [
        again,
        {**again, "run": again["run"] + 1, "maybe_duplicate": False},
        {**unknown, "run": 98, "maybe_duplicate": False},
    ]
    effects.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told[lost["key"] + "-never"] = Told("chaos.plain", unknown=1)
    return refused
