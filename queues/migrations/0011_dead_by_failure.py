"""Indexes of dead letters by what they died of, and of what was resolved lately.

Built beside a running system: each partition's concurrently, then attached. Killed in the middle it goes on.
"""

from django.db import migrations

INDEXES = {
    "job_dead_failure": "(type, reason, fingerprint, id) WHERE state = 'dead' AND resolution = 'open' AND NOT probe",
    "job_resolved": "(resolved_at) WHERE resolution IN ('replayed', 'cancelled', 'ignored') AND NOT probe",
}

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


def make(apps, schema_editor):
    """Make what is missing."""
    with schema_editor.connection.cursor() as cursor:
        for name, columns in INDEXES.items():
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


def drop(apps, schema_editor):
    """Drop them."""
    with schema_editor.connection.cursor() as cursor:
        for name in INDEXES:
            cursor.execute(f"DROP INDEX IF EXISTS {name}")


class Migration(migrations.Migration):
    """Index dead letters."""

    atomic = False
    dependencies = [("queues", "0010_failures")]
    operations = [migrations.RunPython(make, drop)]
