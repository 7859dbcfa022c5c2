"""Indexes of dead letters by what they died of, and of what was resolved lately."""

from django.db import migrations

from queues.migrations._indexes import on_jobs

INDEXES = {
    "job_dead_failure": "(type, reason, fingerprint, id) WHERE state = 'dead' AND resolution = 'open' AND NOT probe",
    "job_resolved": "(resolved_at) WHERE resolution IN ('replayed', 'cancelled', 'ignored') AND NOT probe",
}


class Migration(migrations.Migration):
    """Index dead letters."""

    atomic = False
    dependencies = [("queues", "0010_failures")]
    operations = [on_jobs(INDEXES)]
