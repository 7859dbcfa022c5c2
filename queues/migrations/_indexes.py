"""Indexes of the partitioned jobs table, made and dropped beside a running system.

Each partition's is built concurrently and then attached. Killed in the middle, the migration is run again and goes on.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from django.db import migrations

PARTITIONS = """
SELECT c.relname, x.relname, x.indisvalid, x.attached
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
LEFT JOIN LATERAL (
  SELECT n.relname, p.indisvalid, EXISTS (SELECT FROM pg_inherits a WHERE a.inhrelid = n.oid) AS attached
  FROM pg_index p JOIN pg_class n ON n.oid = p.indexrelid
  WHERE p.indrelid = c.oid AND (n.relname = c.relname || %(suffix)s
    OR EXISTS (SELECT FROM pg_inherits a WHERE a.inhrelid = n.oid AND a.inhparent = %(parent)s::regclass))
) AS x ON true
WHERE i.inhparent = 'queues_job'::regclass ORDER BY c.relname
"""


def make(indexes: Mapping[str, str], apps: Any, schema_editor: Any) -> None:
    """Make what is missing."""
    with schema_editor.connection.cursor() as cursor:
        for name, columns in indexes.items():
            cursor.execute(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY queues_job {columns}")
            cursor.execute(PARTITIONS, {"suffix": f"_{name}", "parent": name})
            for partition, index, valid, attached in cursor.fetchall():
                if attached:
                    continue
                own = f"{partition}_{name}"
                if index is not None and not valid:
                    cursor.execute(f'DROP INDEX CONCURRENTLY "{own}"')
                if index is None or not valid:
                    cursor.execute(f'CREATE INDEX CONCURRENTLY "{own}" ON "{partition}" {columns}')
                cursor.execute(f'ALTER INDEX {name} ATTACH PARTITION "{own}"')


def drop(indexes: Mapping[str, str], apps: Any, schema_editor: Any) -> None:
    """Drop them."""
    with schema_editor.connection.cursor() as cursor:
        for name in indexes:
            cursor.execute(f"DROP INDEX IF EXISTS {name}")


def on_jobs(indexes: Mapping[str, str]) -> migrations.RunPython:
    """Return the operation that makes indexes on jobs. Shape: name → columns and condition. Not for a transaction."""
    return migrations.RunPython(partial(make, indexes), partial(drop, indexes))
